"""The update program with a bug: `python -m hil.updates.plants BUG run …`. The search has to find each.

no_folder_sync      a name that was changed is not made durable
journal_late        what is to be done is written down after it was done
commits_unseen      a version that said READY is taken for well
link_in_place       a link is removed and made again
takes_damaged       nobody looks at the files
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.update import __main__, journal, program, versions
from agent.update.model import Health, Journal


def _replace(place: object, **functions: Callable[..., object]) -> None:
    for name, function in functions.items():
        setattr(place, name, function)


def no_folder_sync() -> None:
    """A name that was changed is not made durable."""
    _replace(journal, sync_folder=lambda _folder: None)
    _replace(versions, sync_folder=lambda _folder: None)


def journal_late() -> None:
    """What is to be done is written down after it was done."""
    write, held = journal.write, list[tuple[Path, Journal]]()

    def late(path: Path, after: Journal) -> None:
        held.append((path, after))
        if len(held) > 1:
            write(*held.pop(0))

    _replace(journal, write=late)


def commits_unseen() -> None:
    """A version that said READY is taken for well."""
    _replace(program, judged=lambda *_: Health(computed=True))


def link_in_place() -> None:
    """A link is removed and made again."""

    def point(self: versions.Versions, link: str, version: str) -> None:
        os.unlink(self.home / link)  # noqa: PTH108 - as the recorder sees it
        os.symlink(version, self.home / link)  # noqa: PTH211
        journal.sync_folder(self.home)

    _replace(versions.Versions, point=point)


def takes_damaged() -> None:
    """Nobody looks at the files."""
    _replace(versions.Versions, problem_of=lambda *_: "")


@dataclass(frozen=True)
class Plant:
    """A bug, and the kind of release on which it shows."""

    plant: Callable[[], None]
    shows_on: str


PLANTS = {
    "no_folder_sync": Plant(no_folder_sync, "good"),
    "journal_late": Plant(journal_late, "fails_self_test"),
    "commits_unseen": Plant(commits_unseen, "fails_self_test"),
    "link_in_place": Plant(link_in_place, "good"),
    "takes_damaged": Plant(takes_damaged, "damaged"),
}

if __name__ == "__main__":
    PLANTS[sys.argv.pop(1)].plant()
    sys.exit(__main__.main())
