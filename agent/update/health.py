"""Whether a version is well: what its own `driveway doctor` says, held against what was amiss before the switch.

The doctor runs as the daemon's user, from the version on trial. It is the judge of the computer, not of itself: that
the daemon answers at all, and did not fall over since it was started, is looked at from outside.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.cli.client import ask, ask_within, socket_path
from agent.errors import DrivewayError
from agent.update.model import Before, Health
from agent.update.service import Unit

NEEDED = ("daemon.reachable", "daemon.version")
GOLDEN = "daemon.golden"
HANDED_IN = "result"
"""`kind` of a lease that was finished; one that was given back early is a `yield`."""
NEWEST = 50
TOLD_S = 5.0


@dataclass(frozen=True)
class Report:
    """What a doctor found: names of checks and their results, and the first words on each that failed."""

    results: dict[str, str]
    details: dict[str, str]

    def failing(self) -> tuple[str, ...]:
        """The checks that failed."""
        return tuple(sorted(name for name, result in self.results.items() if result == "fail"))


def judged(report: Report | None, unit: Unit, was: Before) -> Health:
    """The health of the version on trial; `report` is None where its doctor did not say anything. Pure."""
    if unit.active == "failed":
        return Health("its daemon has failed", dead=True)
    if unit.restarts:
        return Health(f"its daemon fell over, and was started anew {unit.restarts} times", dead=True)
    if report is None:
        return Health("its doctor says nothing")
    for name in NEEDED:
        if report.results.get(name) != "ok":
            return Health(f"{name}: {report.details.get(name) or report.results.get(name, 'not looked at')}")
    if new := [name for name in report.failing() if name not in was.failing]:
        return Health(f"{new[0]}: {report.details[new[0]]}")
    return Health(computed=report.results.get(GOLDEN) == "ok")


def read_report(text: str) -> Report | None:
    """The document of `driveway doctor --json`; None for what is none."""
    try:
        checks = json.loads(text)["checks"]
        results = {str(one["name"]): str(one["result"]) for one in checks}
        details = {str(one["name"]): str(one["detail"])[:200] for one in checks}
    except (ValueError, KeyError, TypeError):
        return None
    return Report(results, details)


class Examiner:
    """Asks the doctor and the daemon. `command` is the `driveway` of what runs now, `user` the daemon's."""

    def __init__(self, command: Path, config: Path, user: str, doctor_s: float) -> None:
        self._command, self._config, self._user, self._doctor_s = command, config, user, doctor_s

    def report(self, *, prove: bool) -> Report | None:
        """What the doctor of the version that runs says now; with `prove` a worker computes."""
        words = [str(self._command), "doctor", "--json", "--config", str(self._config), *([] if prove else ["--quick"])]
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=self._doctor_s,
                check=False,
                **_as_user(self._user),
            )
        except (OSError, KeyError, subprocess.SubprocessError, UnicodeDecodeError):
            return None  # a user that is not there is a KeyError
        return read_report(done.stdout)

    def lease(self) -> str:
        """The newest lease that was finished, `job/epoch`; empty where there is none, or nobody says."""
        try:
            rows = ask(socket_path(None, self._config), "leases", limit=NEWEST)
            finished = (one["lease"] for one in rows)
            return next((f"{one['job']}/{one['epoch']}" for one in finished if one["kind"] == HANDED_IN), "")
        except (DrivewayError, ValueError, KeyError, TypeError, OSError):
            return ""

    def tell(self, version: str) -> tuple[bool, str]:
        """Tell the daemon that a version waits: whether it may be switched now, and what it waits for.

        `{"verb": "update", "release": VERSION}`, answered by `{"ready": true, "why": "", "lease": ""}`. It has to be
        said again and again: the daemon takes no new lease while it is, and forgets it 10 minutes later.
        """
        try:
            said: Any = ask_within(TOLD_S, socket_path(None, self._config), "update", release=version)
            return said["ready"] is True, str(said["why"])
        except DrivewayError as error:
            return False, str(error)
        except (ValueError, KeyError, TypeError, OSError) as error:
            return False, f"the daemon's answer is not understood: {error!r}"


def _as_user(name: str) -> dict[str, Any]:
    """How a child becomes this user; nothing where it is the one already, or we may not."""
    if not name or os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(name)
    groups: list[int] = [user.pw_gid, *_groups("tss")]
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": groups}


def _groups(*names: str) -> Sequence[int]:
    """Those of these groups that there are: the TPM's, which the unit gives the daemon too."""
    known: Callable[[], list[grp.struct_group]] = grp.getgrall
    return [one.gr_gid for one in known() if one.gr_name in names]
