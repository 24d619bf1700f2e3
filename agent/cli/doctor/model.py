"""What a check finds, and how checks are run: each by itself, so that one that crashes is itself a finding.

* **ok**: as it should be.
* **warn**: it works, and somebody should look.
* **fail**: it does not work until it is mended.
* **missing**: there is nothing to look at (it is not configured, or nobody could be asked); it counts as neither.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agent.errors import DrivewayError


class Result(enum.StrEnum):
    """What came of a check."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """One check's. `detail` is what was found, in a sentence; `mend` what to do about it, empty where nothing is."""

    name: str
    result: Result
    detail: str
    mend: str = ""


Check = Callable[[], Finding | Iterable[Finding]]


def ok(name: str, detail: str) -> Finding:
    """It is as it should be."""
    return Finding(name, Result.OK, detail)


def warn(name: str, detail: str, mend: str) -> Finding:
    """Somebody should look."""
    return Finding(name, Result.WARN, detail, mend)


def fail(name: str, detail: str, mend: str) -> Finding:
    """It has to be mended."""
    return Finding(name, Result.FAIL, detail, mend)


def missing(name: str, detail: str, mend: str = "") -> Finding:
    """There is nothing to look at."""
    return Finding(name, Result.MISSING, detail, mend)


def carried_out(name: str, check: Check) -> list[Finding]:
    """What the check finds. What it raises is a finding by its `name`: a failure, with the error's own hint."""
    try:
        found = check()
        return [found] if isinstance(found, Finding) else list(found)
    except DrivewayError as error:
        return [fail(name, error.what, error.hint)]
    except Exception as error:  # noqa: BLE001 - one broken check must not hide what the others find
        return [fail(name, f"the check itself broke off: {error!r}", "this is a bug of driveway: please report it")]


def worst(findings: Iterable[Finding]) -> Result:
    """Of all of them: fail, warn, or ok."""
    results = {one.result for one in findings}
    return next((one for one in (Result.FAIL, Result.WARN) if one in results), Result.OK)
