"""A vehicle that is a folder: versions, links, a journal, and a daemon that really runs.

The update program is the real one, told where the vehicle lies. Its operations on the folder are recorded, and it can
be killed after any of them (`hil/powercut/recorder.c`); then the daemon is killed too, and the vehicle boots again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from agent.update import journal as journals
from agent.update.model import Disk, Journal
from agent.update.program import Places
from agent.update.versions import SUMS, Versions
from hil.powercut import recorder

STAND_IN, SYSTEMCTL = (Path(__file__).with_name(name) for name in ("stand_in.py", "systemctl.py"))
OLD, NEW, OLDER = "1.0.0", "1.1.0", "0.9.0"
LIMITS = {
    "--ready-s": "5",
    "--ill-s": "0.3",
    "--lease-s": "0.2",
    "--trial-s": "30",
    "--doctor-s": "5",
    "--poll-s": "0.05",
}
RUN_S = 60.0


@dataclass(frozen=True)
class Ran:
    """One run of the update program."""

    status: int
    said: str


class Vehicle:
    """Below `folder`: `vehicle` is its tree, `rig` what the stand-ins keep, `log` what was recorded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root, self.rig, self.log = folder / "vehicle", folder / "rig", folder / "log"
        self.places = Places(self.root)
        self.versions = Versions(self.places.home)
        self._boots = 0

    @classmethod
    def made(cls, folder: Path) -> Vehicle:
        """A vehicle that was installed, and does not run yet."""
        self = cls(folder)
        for path in (self.places.home, self.places.journal.parent, self.places.config.parent, self.rig):
            path.mkdir(parents=True)
        self._configure()
        self.add(OLD, "good")
        for link in ("current", "good"):
            (self.places.home / link).symlink_to(OLD)
        self._boot_id()
        return self

    def copy(self, folder: Path) -> Vehicle:
        """Another vehicle as this one is now, which must be off."""
        shutil.copytree(self.root, folder / "vehicle", symlinks=True)
        shutil.copytree(self.rig, folder / "rig", ignore=shutil.ignore_patterns("control.sock"))
        other = Vehicle(folder)
        other._boots = self._boots
        other._configure()
        return other

    def _configure(self) -> None:
        self.places.config.write_text(f'control_socket = "{self.rig / "control.sock"}"\n')

    def add(self, version: str, kind: str) -> None:
        """Stage a version, as its package does."""
        tree = self.places.home / f"{version}.part"
        (tree / "bin").mkdir(parents=True)
        shutil.copyfile(STAND_IN, tree / "bin/driveway")
        (tree / "bin/driveway").chmod(0o755)
        (tree / "kind").write_text("good" if kind == "damaged" else kind, "ascii")
        (tree / "data").write_bytes(bytes(4096))
        files = sorted(path for path in tree.rglob("*") if path.is_file())
        lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n" for path in files)
        (tree / SUMS).write_text("".join(lines))
        if kind == "damaged":
            (tree / "data").write_bytes(bytes(2048) + b"\x01" + bytes(2047))
        tree.rename(self.places.home / version)

    def boot(self) -> None:
        """As systemd does: the links first, then the daemon. What was running is gone."""
        self.off()
        self._boot_id()
        self.update("recover")
        self.systemctl("start")

    def off(self) -> None:
        """The power goes."""
        state = self.rig / "unit.json"
        if state.exists():
            pid = json.loads(state.read_text())["pid"]
            try:
                if b"driveway" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass
            state.unlink()
        shutil.rmtree(self.root / "run", ignore_errors=True)

    def stage(self, kind: str) -> str:
        """Stage the release that is to be tried; its version."""
        version = OLDER if kind == "older" else NEW
        self.add(version, kind)
        return version

    def update(self, verb: str = "run", *, stop_after: int = 0, plant: str = "") -> Ran:
        """Run the update program; `stop_after`: kill it after so many operations on the vehicle's folder.

        `plant` names a bug of `hil.updates.plants` to run it with.
        """
        with self.begin(verb, stop_after=stop_after, plant=plant) as program:
            try:
                _, said = program.communicate(timeout=RUN_S)
            finally:
                program.kill()
        return Ran(program.returncode, said)

    def begin(self, verb: str = "run", *, stop_after: int = 0, plant: str = "") -> subprocess.Popen[str]:
        """The same, and not waited for."""
        self.log.unlink(missing_ok=True)
        told = {"LD_PRELOAD": str(recorder.build()), recorder.FOLDER: f"{self.root}/", recorder.LOG: str(self.log)}
        if stop_after:
            told[recorder.STOP] = str(stop_after)
        words = [word for pair in LIMITS.items() for word in pair]
        module = ["hil.updates.plants", plant] if plant else ["agent.update"]
        command = [sys.executable, "-B", "-m", *module, verb, "--root", str(self.root), "--user", ""]
        return subprocess.Popen(
            [*command, "--systemctl", str(SYSTEMCTL), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment() | told,
        )

    def systemctl(self, *words: str) -> str:
        """What the stand-in of systemctl prints."""
        done = subprocess.run(
            [str(SYSTEMCTL), *words],
            capture_output=True,
            text=True,
            env=self._environment(),
            timeout=RUN_S,
            check=False,
        )
        return done.stdout

    def works(self) -> bool:
        """Whether the daemon runs and answers, by the doctor of the version that `current` leads to."""
        command = [str(self.places.home / "current/bin/driveway"), "doctor", "--json"]
        done = subprocess.run(command, capture_output=True, env=self._environment(), timeout=RUN_S, check=False)
        if done.returncode or "ActiveState=active" not in self.systemctl("show"):
            return False
        found = {one["name"]: one["result"] for one in json.loads(done.stdout)["checks"]}
        return all(found.get(name) == "ok" for name in ("daemon.reachable", "daemon.version", "daemon.golden"))

    def acknowledged(self) -> set[int]:
        """The results that a daemon said it has."""
        path = self.rig / "acknowledged"
        # The last line may be half written: its writer was killed.
        said = path.read_text().rpartition("\n")[0].split() if path.exists() else []
        return {int(row) for row in said}

    def lost(self) -> int:
        """How many results were acknowledged and are not there."""
        said = self.acknowledged()
        db = sqlite3.connect(self.rig / "state.db")
        try:
            there = {row for (row,) in db.execute("SELECT id FROM results")}
        finally:
            db.close()
        return len(said - there)

    def disk(self) -> Disk:
        """The versions and the links."""
        return self.versions.look()

    def journal(self) -> Journal:
        """What the update program has written down."""
        return journals.read(self.places.journal)

    def _environment(self) -> dict[str, str]:
        return os.environ | {"DRIVEWAY_UPDATE_RIG": str(self.rig)}

    def _boot_id(self) -> None:
        self._boots += 1
        path = self.root / "proc/sys/kernel/random/boot_id"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"boot-{self._boots}\n")
