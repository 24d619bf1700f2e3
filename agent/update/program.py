"""The update program: carries out what `agent.update.machine` names, and tells it what came of it.

    recover   at boot, before the daemon starts: the links as the journal means them. Nothing is waited for
    run       after it, and whenever a version was staged: until there is no version left to decide on

The journal is written before an action is carried out. What cannot be carried out ends the program with a status of 1;
systemd starts it anew, and it goes on from the journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from agent.errors import DrivewayError, StoreError
from agent.update import journal as journals
from agent.update import status
from agent.update.health import Examiner, judged
from agent.update.machine import CURRENT, Now, Update, step
from agent.update.model import (
    Action,
    Answered,
    Ask,
    Before,
    Began,
    Check,
    Checked,
    Event,
    Examine,
    Examined,
    GoBack,
    Health,
    Journal,
    Limits,
    Looked,
    Phase,
    Point,
    Prune,
    Start,
    Started,
    Switch,
    Switched,
    WentBack,
)
from agent.update.service import Service
from agent.update.versions import Versions

USER = "driveway"


@dataclass(frozen=True)
class Places:
    """Where things lie, below `root`."""

    root: Path

    @property
    def home(self) -> Path:
        """The versions, and the two links."""
        return self.root / "opt/driveway"

    @property
    def journal(self) -> Path:
        """The program's own file."""
        return self.root / "var/lib/driveway-update/journal.json"

    @property
    def status(self) -> Path:
        """What everybody may read of it."""
        return self.root / "run/driveway-update/status.json"

    @property
    def config(self) -> Path:
        """The daemon's configuration."""
        return self.root / "etc/driveway/agent.toml"

    def boot(self) -> str:
        """The name of this boot; raises StoreError."""
        path = self.root / "proc/sys/kernel/random/boot_id"
        try:
            return path.read_text("ascii").strip()
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {path}: {error}") from error


class Program:
    """One run. `examiner` and `service` are what is asked and started; lines for people go to standard error."""

    def __init__(
        self,
        places: Places,
        *,
        service: Service,
        examiner: Examiner,
        limits: Limits,
    ) -> None:
        self._places, self._service, self._examiner = places, service, examiner
        self._versions = Versions(places.home)
        self._update = Update(self._read(), limits, places.boot())
        self._waits_for = ""
        self._shown = b""

    def recover(self, *, at_boot: bool) -> None:
        """Have the links as the journal means them; raises StoreError."""
        self._fold(Began(self._update.boot, self._versions.look(), at_boot))

    def run(self) -> None:
        """Bring what is staged to its end; raises StoreError."""
        self.recover(at_boot=False)
        while True:
            before = self._update
            acted = self._fold(Looked(self._versions.look()))
            phase = self._update.journal.phase
            if phase is Phase.IDLE and not acted:
                return
            if self._update.journal == before.journal:
                time.sleep(self._update.limits.poll_s)

    def _fold(self, event: Event | None) -> bool:
        """An event, and all that follows from it; whether anything was done."""
        acted = False
        while event is not None:
            now = Now(time.clock_gettime(time.CLOCK_BOOTTIME), int(time.time()))
            before = self._update.journal
            self._update, actions = step(self._update, event, now)
            if self._update.journal != before:
                journals.write(self._places.journal, self._update.journal)
                self._tell(before)
                self._show()
            event = None
            for action in actions:
                acted, event = True, self._carry_out(action)
        self._show()
        return acted

    def _carry_out(self, action: Action) -> Event | None:  # noqa: PLR0911 - one case an action
        """What came of it; only the last action of a step has something to tell."""
        match action:
            case Check(version=version):
                return Checked(version, self._versions.problem_of(version))
            case Ask(version=version):
                return self._ask(version)
            case Switch(version=version):
                return self._switch(version)
            case Start():
                return Started(self._service.start(self._update.limits.ready_s))
            case Examine(was=was, prove=prove):
                return Examined(self._examine(was, prove=prove))
            case GoBack(version=version):
                return self._go_back(version)
            case Point(link=link, version=version):
                self._versions.point(link, version)
            case Prune(versions=versions, but=but):
                self._versions.remove(versions, but=but)
            case _:
                assert_never(action)
        return None

    def _examine(self, was: Before, *, prove: bool) -> Health:
        health = judged(self._examiner.report(prove=prove), self._service.look(), was)
        if health.problem:
            return health
        lease = self._examiner.lease()
        return replace(health, leased=bool(lease) and lease != was.lease)

    def _ask(self, version: str) -> Answered:
        """The daemon's word. One that has failed for good holds no lease, and is what an update may mend."""
        ready, waits_for = self._examiner.tell(version)
        if not ready and self._service.look().active == "failed":
            ready, waits_for = True, ""
        if waits_for != self._waits_for:
            self._waits_for = waits_for
            _say(f"{version} waits: {waits_for}" if waits_for else f"{version} may be switched")
        if not ready:
            return Answered(ready=False)
        report = self._examiner.report(prove=False)
        failing = () if report is None else report.failing()
        return Answered(ready=True, was=Before(failing, self._examiner.lease()))

    def _switch(self, version: str) -> Switched:
        """Stop, look at the files once more, and change the link."""
        if problem := self._service.stop():
            _say(problem)
        problem = self._versions.problem_of(version)
        if not problem:
            self._versions.point(CURRENT, version)
        return Switched(problem)

    def _go_back(self, version: str) -> WentBack:
        if version not in self._versions.look().staged:
            raise StoreError(f"{version} is gone, so there is no way back", hint="install a version's package again")
        if problem := self._service.stop():
            _say(problem)
        self._versions.point(CURRENT, version)
        return WentBack(self._service.start(self._update.limits.ready_s))

    def _read(self) -> Journal:
        """The journal; one that is damaged is laid aside for people, and counts as none. Raises StoreError."""
        try:
            return journals.read(self._places.journal)
        except journals.DamagedError as error:
            _say(str(error))
            journals.lay_aside(self._places.journal)
            return Journal()

    def _show(self) -> None:
        """Write the status, if it has become another."""
        waits_for = self._waits_for if self._update.journal.phase is Phase.WAITING else ""
        shown = status.encode(self._update.journal, self._versions.look(), waits_for)
        if shown != self._shown:
            status.write(self._places.status, shown)
            self._shown = shown

    def _tell(self, before: Journal) -> None:
        """What has become another, in a line."""
        after = self._update.journal
        for one in after.past[len(before.past) :] if len(after.past) > len(before.past) else after.past[-1:]:
            if one not in before.past:
                _say(f"{one.version} is {one.result.value.replace('_', ' ')}{one.reason and ': '}{one.reason}")
        if after.phase is not before.phase and after.phase is not Phase.IDLE:
            _say(f"{after.candidate}: {after.phase.value.replace('_', ' ')}{after.reason and ': '}{after.reason}")


def _say(line: str) -> None:
    """A line for the journal; unbuffered, so that it is there when the power goes."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def alone(places: Places) -> Iterator[None]:
    """While this holds no other update program runs; raises DrivewayError where one does."""
    folder = places.journal.parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DrivewayError("another update program runs", hint="systemctl status driveway-update") from None
        yield
    finally:
        os.close(file)
