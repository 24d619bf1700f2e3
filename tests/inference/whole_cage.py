"""Tests that need measures of the cage which not every kernel has: skipped there, with the kernel's own reason.

With DRIVEWAY_REQUIRE_CAGE=1 they fail instead: where the project is checked, nothing may be skipped unseen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NoReturn

import pytest

ENFORCED = "enforced"


def need(told: Mapping[str, str], *measures: str) -> None:
    """Go on only where these measures are enforced; none: where all that were told are."""
    for name in measures or told:
        if told[name] != ENFORCED:
            lacking(f"{name}: {told[name]}")


def lacking(why: str) -> NoReturn:
    """Skip the test, or fail it where nothing may be lacking."""
    if os.environ.get("DRIVEWAY_REQUIRE_CAGE") == "1":
        pytest.fail(f"required here, and lacking: {why}")
    pytest.skip(why)
