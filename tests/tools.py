"""Tests that need programs which not every machine has: skipped without them, and the run says why.

With DRIVEWAY_REQUIRE_TOOLS=1 they fail instead: where the project is checked, no independent check vanishes unseen.
"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def needs(present: object, why: str) -> pytest.MarkDecorator:
    """A mark for tests that need a program; `why` says what is lacking where it is not `present`.

    `tests.conftest` looks at the marks before each test's fixtures are made.
    """
    return pytest.mark.tool(bool(present), why)


def lacking(why: str) -> NoReturn:
    """Skip the test, or fail it where nothing may be lacking."""
    if os.environ.get("DRIVEWAY_REQUIRE_TOOLS") == "1":
        pytest.fail(f"required here, and lacking: {why}", pytrace=False)
    pytest.skip(why)
