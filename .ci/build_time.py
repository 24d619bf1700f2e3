# noqa: INP001 - hatch loads it by its path
"""Writes when a wheel was made into it: what `agent.trust.time_floor` knows of the time before anybody has told it.

`SOURCE_DATE_EPOCH` (seconds since 1970), where the build is to be reproducible, else the builder's clock. A checkout
and an editable install have no such file, and fall back on the time that stands in the code.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILE = "agent/trust/built_s"


class BuildTime(BuildHookInterface):  # type: ignore[type-arg]  # any builder's configuration
    """Runs for the target `wheel` (pyproject.toml)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the files are gathered; raises ValueError for a SOURCE_DATE_EPOCH that is no number."""
        if version == "editable":
            return
        made = Path(self.directory) / "built_s"
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(f"{int(os.environ.get('SOURCE_DATE_EPOCH') or time.time())}\n", "ascii")
        build_data["force_include"][str(made)] = FILE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - the hook's
        """Called when the wheel is made: what went into it is not needed beside it."""
        (Path(self.directory) / "built_s").unlink(missing_ok=True)
