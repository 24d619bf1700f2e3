"""The update program as a unit, in its sandbox, on a system with the package: it asks, moves links, and goes back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.update import journal as journals
from agent.update.model import Journal, Phase, Result
from hil.vm import nspawn, rootfs
from hil.vm.nspawn import Container
from tests.vm.installed import SERVICE, configure, deb_in, next_version

UPDATE, BOOT, TIMER = "driveway-update.service", "driveway-update-boot.service", "driveway-update.timer"
NEXT = "99.0.0"
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def vehicle(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A system with the agent running, and a newer version staged."""
    if problem := nspawn.why_not() or (rootfs.why_not() and f"no root file system: {rootfs.why_not()}"):
        pytest.skip(problem)
    newer = next_version(built, tmp_path_factory.mktemp("next"), NEXT)
    with Container(rootfs.build_rootfs(), tmp_path_factory.mktemp("vehicle")) as container:
        container.check("dpkg", "-i", deb_in(container, built))
        configure(container)
        container.check("systemctl", "start", SERVICE, timeout_s=PATIENCE_S)
        container.check("dpkg", "-i", deb_in(container, newer))
        yield container


def until(what: Callable[[], Any]) -> Any:
    deadline_s = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    return found


def journal_of(vehicle: Container) -> Journal:
    return journals.read(vehicle.root / "var/lib/driveway-update/journal.json")


def test_it_asks_the_daemon_and_tells_everybody_what_it_waits_for(vehicle: Container) -> None:
    until(lambda: journal_of(vehicle).phase is Phase.WAITING)
    until(lambda: "waits" in vehicle.check("journalctl", "-o", "cat", "-u", UPDATE))
    told = json.loads(vehicle.check("runuser", "-u", "nobody", "--", "cat", "/run/driveway-update/status.json"))
    assert (told["phase"], told["candidate"]) == ("waiting", NEXT)
    assert told["current"] == told["good"] != NEXT
    assert told["past"][0]["reason"] == "installed"
    assert "may not open" not in told["reason"]
    assert vehicle.show(BOOT, "ActiveState")["ActiveState"] == "active"
    assert vehicle.show(TIMER, "ActiveState")["ActiveState"] == "active"


def test_from_inside_its_sandbox_it_stops_the_daemon_moves_the_link_and_starts_it(vehicle: Container) -> None:
    """As after a power cut on the way back: the journal says so, and `current` leads to the version that failed."""
    vehicle.check("systemctl", "stop", UPDATE)
    home = vehicle.root / "opt/driveway"
    good = str((home / "good").readlink())
    journal = journal_of(vehicle)
    half_way = Journal(Phase.ROLLING_BACK, NEXT, good, reason="it failed here", past=journal.past)
    journals.write(vehicle.root / "var/lib/driveway-update/journal.json", half_way)
    vehicle.check("ln", "-sfn", NEXT, "/opt/driveway/current")
    vehicle.check("systemctl", "restart", SERVICE, timeout_s=PATIENCE_S)
    assert f"/opt/driveway/{NEXT}/bin/python" in vehicle.check("ps", "-o", "args=", "-C", "driveway")

    vehicle.check("systemctl", "start", UPDATE)
    until(lambda: vehicle.show(UPDATE, "ActiveState")["ActiveState"] == "inactive")
    assert vehicle.show(UPDATE, "Result")["Result"] == "success"
    decided = journal_of(vehicle).decided(NEXT)
    assert decided is not None
    assert (decided.result, decided.reason) == (Result.ROLLED_BACK, "it failed here")
    assert str((home / "current").readlink()) == good
    assert not (home / NEXT).exists()
    assert vehicle.show(SERVICE, "ActiveState")["ActiveState"] == "active"
    assert f"/opt/driveway/{good}/bin/python" in vehicle.check("ps", "-o", "args=", "-C", "driveway")


def test_purging_leaves_nothing_of_it(vehicle: Container) -> None:
    said = vehicle.check("dpkg", "--remove", "driveway")
    assert "/var/lib/driveway-update (which versions failed here)" in said
    vehicle.check("dpkg", "--purge", "driveway")
    for path in ("/var/lib/driveway-update", "/run/driveway-update", "/opt/driveway"):
        assert vehicle.run("test", "-e", path).returncode == 1, path
