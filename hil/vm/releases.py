"""Releases for a vehicle in a VM: copies of the version that has proven itself, each good or broken in its own way.

They are staged as the package's own script does it, by hard links in `/opt/driveway`, but without a package around
them: so a release costs seconds of the slow guest instead of a minute. `guest/stage_release.py` does it there.
"""

from __future__ import annotations

import enum
import json
from typing import Any

from hil.vm.shell import GuestShell

HOME, JOURNAL = "/opt/driveway", "/var/lib/driveway-update/journal.json"
UNIT = "driveway-update.service"
STAGE_S = 180.0
DROP_INS = {
    f"/etc/systemd/system/{UNIT}.d/50-rig.conf": """\
# Written by the rig: a vehicle in a VM is 12 to 28 times slower, and no test waits for ten minutes of a lease.
[Service]
ExecStart=
ExecStart=/opt/driveway/good/bin/python -I -B -m agent.update run --ready-s 150 --ill-s 90 --lease-s 120 --poll-s 2
""",
    "/etc/systemd/system/driveway.service.d/60-rig.conf": """\
# Written by the rig: found hanging sooner than the VM's other profile lets it.
[Service]
TimeoutStartSec=120s
""",
}


class Release(enum.StrEnum):
    """What becomes of a release once it is tried."""

    GOOD = "good"
    CRASHES = "crashes"
    """Its daemon ends at once."""
    HANGS = "hangs"
    """Its daemon never says that it is ready."""
    FAILS_SELF_TEST = "fails_self_test"
    """It runs, but none of its workers can be started."""
    FLIPPED_BYTE = "flipped_byte"
    """One byte of its largest file is another than the list of its files says."""


def stage(shell: GuestShell, version: str, kind: Release) -> None:
    """Put a release where the package's script would; raises DrivewayError with what went wrong."""
    shell.check(f"/usr/local/lib/hil/stage_release.py {HOME} {version} {kind}", timeout_s=STAGE_S)


def slower(shell: GuestShell) -> None:
    """Have the update program's patience fit the VM."""
    for path, text in DROP_INS.items():
        shell.check(f"mkdir -p {path.rpartition('/')[0]}")
        shell.put(text.encode(), path)
    shell.check("systemctl daemon-reload")


def journal(shell: GuestShell) -> dict[str, Any]:
    """The update program's own file, as it lies there; empty where there is none."""
    text = shell.run(f"cat {JOURNAL}").out
    found: dict[str, Any] = json.loads(text) if text.strip() else {}
    return found


def decided(shell: GuestShell, version: str) -> str:
    """What became of a version (`committed`, `rolled_back`, `refused`); empty while that is open."""
    past = journal(shell).get("past", [])
    return next((str(one["result"]) for one in reversed(past) if one["version"] == version), "")


def link(shell: GuestShell, name: str) -> str:
    """The version that `current` or `good` leads to."""
    return shell.check(f"readlink {HOME}/{name}").strip()
