"""Text from elsewhere, as it may be shown: a car, a broker or a dispatcher must not speak to the owner's terminal.

An escape sequence in a leaf's value or in the detail of an order could clear the screen, forge a line of `driveway
status`, or set the window's title. JSON needs none of this: it escapes what is not printable by itself.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """The text without control characters; each run of white space in it, line breaks too, is one space."""
    if text.isprintable():
        return text
    return "".join(character for character in " ".join(text.split()) if character.isprintable())
