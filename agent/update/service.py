"""The daemon as a unit: stopped, started and looked at through systemctl. What it says is believed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

UNIT = "driveway.service"
STOP_S = 60.0
ASK_S = 10.0


@dataclass(frozen=True)
class Unit:
    """ActiveState= and NRestarts= of the daemon's unit."""

    active: str
    restarts: int


class Service:
    """`systemctl` is the program to ask."""

    def __init__(self, systemctl: str = "systemctl") -> None:
        self._systemctl = systemctl

    def stop(self) -> str:
        """Stop it; what went wrong, empty for nothing. systemd kills what does not end in its time."""
        return self._run(STOP_S, "stop", UNIT)

    def start(self, ready_s: float) -> str:
        """Start it and wait for READY; why it did not come up, empty where it did. One that runs is left alone.

        Restarts are counted anew from here.
        """
        if self.look().active != "active":
            self._run(ASK_S, "reset-failed", UNIT)
        if problem := self._run(ready_s, "start", UNIT):
            return problem
        unit = self.look()
        return "" if unit.active == "active" else f"it was started, and is {unit.active}"

    def look(self) -> Unit:
        """As it is now; `unknown` where nobody says."""
        said = self._output(ASK_S, "show", "--property", "ActiveState,NRestarts", UNIT)
        pairs = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        restarts = pairs.get("NRestarts", "")
        return Unit(pairs.get("ActiveState", "unknown"), int(restarts) if restarts.isdigit() else 0)

    def _output(self, timeout_s: float, *words: str) -> str:
        try:
            done = subprocess.run(
                [self._systemctl, *words], capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout

    def _run(self, timeout_s: float, *words: str) -> str:
        try:
            done = subprocess.run(
                [self._systemctl, *words], capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return f"systemctl {words[0]} took more than {timeout_s:.0f} s"
        except OSError as error:
            return f"systemctl cannot be run: {error}"
        if done.returncode:
            return f"systemctl {words[0]}: {done.stderr.strip()[:200] or f'status {done.returncode}'}"
        return ""
