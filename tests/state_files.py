"""Which files of a state folder docs/state.md names, and as what."""

from __future__ import annotations

import re
from pathlib import Path

TABLE = Path(__file__).parent.parent / "docs" / "state.md"
PLACEHOLDERS = {
    "SHA256": "[0-9a-f]{64}",
    "NAME": r"[\w-]+(\.\w+)*",
    "HEX": "[0-9a-f]{16}",
    "MS": "[0-9]{13}",
    "N": "[0-9]+",
    r"\*\*": ".+",
}


def rows() -> dict[str, str]:
    """Each name in the table's first column, and the row's words on its version."""
    found: dict[str, str] = {}
    for line in TABLE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            found |= dict.fromkeys(re.findall("`([^`]+)`", cells[0]), cells[2])
    return found


def pattern(name: str) -> re.Pattern[str]:
    """What the name stands for, as files below the folder are called."""
    places = "|".join(PLACEHOLDERS)
    keys = {key.replace("\\", ""): value for key, value in PLACEHOLDERS.items()}
    return re.compile(
        re.sub(places, lambda found: keys[found[0]], re.escape(name).replace(r"\*", "*").replace(r"\-", "-"))
    )


def used(folder: Path) -> set[str]:
    """The files below a folder, as the table would call them."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def unnamed(folder: Path) -> set[str]:
    """The files below a state folder that no row of the table is about."""
    known = [pattern(name) for name in rows()]
    return {name for name in used(folder) if not any(one.fullmatch(name) for one in known)}
