"""One item's answer in a line, for people: what was read, which class it is, how much of a mask is set."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from agent.printable import printable

CLASSES_SHOWN = 3
PARTS = ("classes", "mask", "fingerprint")
"""The order in which they are told."""
UNTOLD = ("text", "confidence_permille", "samples")
"""The text comes first, as it is; the others are for verifiers."""


def answer_text(answer: dict[str, Any]) -> str:
    """The parts of an answer one after the other; a part that nobody knows here is JSON."""
    if "error" in answer:
        return printable(str(answer["error"]))
    said = [str(answer["text"])] if "text" in answer else []
    known = [name for name in PARTS if name in answer]
    rest = [name for name in answer if name not in {*PARTS, *UNTOLD}]
    said += [_part(name, answer[name]) for name in (*known, *rest)]
    return printable("; ".join(said))


def _part(name: str, part: Any) -> str:
    """One part; what is not in the form that the operations give is JSON."""
    try:
        match name:
            case "classes":
                return _classes(part)
            case "mask":
                return _mask(part)
            case "fingerprint":
                return f"fingerprint of {len(part['values'])} values"
            case _:
                pass
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        pass
    return f"{name} {json.dumps(part)}"


def _classes(classes: list[dict[str, Any]]) -> str:
    """`180 (99.8 %), 0 (0.2 %)`."""
    shown = [
        f"{one['label'] if 'label' in one else 'class ' + str(one['class'])} ({one['probability_permille'] / 10:.1f} %)"
        for one in classes[:CLASSES_SHOWN]
    ]
    return ", ".join(shown)


def _mask(mask: dict[str, Any]) -> str:
    """`mask of 480 x 640 pixels, 12.2 % set`."""
    try:
        bits = base64.b64decode(mask["bits"], validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    pixels = mask["rows"] * mask["columns"]
    share = int.from_bytes(bits, "big").bit_count() / pixels
    return f"mask of {mask['rows']} x {mask['columns']} pixels, {share * 100:.1f} % set"
