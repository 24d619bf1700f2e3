"""`python -m agent.update recover | run`: the update program (driveway-update.service), and what it may be told.

Exit status: 0 done, 1 it could not go on (systemd starts it anew), 2 usage.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from agent.errors import DrivewayError
from agent.update.health import Examiner
from agent.update.model import Limits
from agent.update.program import USER, Places, Program, alone
from agent.update.service import Service


def main() -> int:
    """Run one verb."""
    usual = Limits()
    top = argparse.ArgumentParser(prog="driveway-update", description="Switches to a staged version, or back.")
    top.add_argument("verb", choices=("recover", "run"), help="recover: the links alone, at boot; run: all of it")
    top.add_argument("--root", type=Path, default=Path("/"), help="where the vehicle's tree is (default: /)")
    top.add_argument("--systemctl", default="systemctl", help="the program that starts and stops the daemon")
    top.add_argument("--user", default=USER, help="as whom the doctor is asked; empty: as whoever runs this")
    for name, about in (
        ("ready_s", "from the start to READY"),
        ("ill_s", "so long an ill version may take to recover"),
        ("lease_s", "so long a lease is waited for before a golden vector is enough"),
        ("trial_s", "a trial that lasts longer has failed"),
        ("doctor_s", "the most that a doctor may take"),
        ("poll_s", "between two looks"),
    ):
        flag = f"--{name.replace('_', '-')}"
        top.add_argument(flag, type=float, default=getattr(usual, name), metavar="S", help=f"{about} (%(default)s)")
    for name, about in (("unwell_boots", "boots in a row without once being well"), ("boots", "boots of a trial")):
        flag = f"--{name.replace('_', '-')}"
        top.add_argument(flag, type=int, default=getattr(usual, name), metavar="N", help=f"{about} (%(default)s)")
    options = top.parse_args()
    names = [one.name for one in fields(Limits)]
    limits = Limits(**{name: getattr(options, name) for name in names})
    places = Places(options.root)
    command = places.home / "current/bin/driveway"
    try:
        with alone(places):
            program = Program(
                places,
                service=Service(options.systemctl),
                examiner=Examiner(command, places.config, options.user, limits.doctor_s),
                limits=limits,
            )
            program.recover(at_boot=True) if options.verb == "recover" else program.run()
    except DrivewayError as error:
        sys.stderr.write(f"driveway-update: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
