"""A card that says what a test wants, behind the real bindings: builds and loads the stand-in for their library."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

from tests.tools import lacking

SOURCE = Path(__file__).with_name("nvml_stand_in.c")
HEALTHY = {
    "card": "1",
    "power": "42500",
    "temperature": "61",
    "energy": "123456789",
    "reasons": "0",
    "limit": "60000",
    "least": "15000",
    "most": "75000",
}


class Card:
    """The one card of the stand-in; a value that starts with `!` is an error code."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.says(**HEALTHY)

    def says(self, **metrics: str) -> None:
        """From now on these are all its metrics."""
        self.file.write_text("".join(f"{name} {value}\n" for name, value in metrics.items()), "ascii")

    def says_also(self, **metrics: str) -> None:
        """From now on it is healthy, but for these."""
        self.says(**HEALTHY | metrics)

    @property
    def done(self) -> list[str]:
        """What was done to the library, in order."""
        log = self.file.with_name(f"{self.file.name}.log")
        return log.read_text("ascii").splitlines() if log.exists() else []


def build(folder: Path) -> Path:
    """The library, under the name by which the bindings load it; skips where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        lacking("no C compiler (cc) to build the stand-in for libnvidia-ml.so.1")
    library = folder / "libnvidia-ml.so.1"
    soname = "-Wl,-soname,libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", soname, "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True)
    return library


def load(library: Path) -> None:
    """Load it here: whoever asks the dynamic linker for its name afterwards gets it."""
    ctypes.CDLL(str(library))
