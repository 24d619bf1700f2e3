"""Names for jobs that the dispatcher adds by itself: of the same form as the names of those that they resemble.

A car is not to know that a job is a copy, or one whose answers are known. So a name is drawn anew where the name that
it takes after was drawn, and keeps the rest: `sub` and twelve hex digits and a number (`hil.submit`), `job-` and twelve
hex digits (`hil.dispatcher.submit`). In any other name each letter becomes another letter, each digit another digit.
"""

from __future__ import annotations

import re
import string
from secrets import choice

DRAWN = re.compile(r"(?P<head>.*)(?P<drawn>[0-9a-f]{12})(?P<number>(-[0-9]+)?)")
OTHER = re.compile(r"(?P<drawn>.*?)(?P<number>(-[0-9]+)?)")
SHORTEST = 8
"""Drawn characters: of fewer, somebody else might think of the same name."""


def name_like(job: str) -> str:
    """A new name of the same form, at most as long as `job` or a few characters; drawn, so nobody can foresee it."""
    ours = DRAWN.fullmatch(job)
    if ours is not None:
        return ours["head"] + "".join(choice("0123456789abcdef") for _ in ours["drawn"]) + ours["number"]
    theirs = OTHER.fullmatch(job)
    assert theirs is not None, "any text matches"
    drawn = "".join(_another(character) for character in theirs["drawn"])
    return drawn + "".join(choice(string.ascii_lowercase) for _ in range(SHORTEST - len(drawn))) + theirs["number"]


def _another(character: str) -> str:
    """A character of the same kind."""
    for kind in (string.digits, string.ascii_lowercase, string.ascii_uppercase):
        if character in kind:
            return choice(kind)
    return character
