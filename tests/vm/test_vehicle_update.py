"""Updates of a vehicle in the VM: good and broken releases, and the power going in the middle, while it works.

One vehicle lives through all of these, so each begins with the version that the one before left. Whatever happens, an
agent works afterwards, its ledger is the dispatcher's, and nothing that was acknowledged is lost.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.vm import releases, snapshots
from hil.vm.car import CarProcess
from hil.vm.fleet import HostFleet, until
from hil.vm.image import Image
from hil.vm.machine import Machine, Options
from hil.vm.releases import Release
from hil.vm.vehicle import Vehicle

CUTS = int(os.environ.get("DRIVEWAY_VM_CUTS", "5"))
"""`make test-vm-long` wants 50."""
LONGEST_CUT_S = 60.0
"""A good update takes about a minute there."""
DECIDED_S, LEASE_S, ANSWER_S = 900.0, 240.0, 300.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostFleet]:
    with HostFleet(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def vehicle(
    image: Image, package: Path, fleet: HostFleet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Vehicle]:
    """Installed before; configured, ready, and a car around it that is parked, empty and plugged in."""
    folder = snapshots.take(snapshots.installed(image, package), tmp_path_factory.mktemp("vehicle"))
    with Machine(image, folder, Options(forwards=fleet.forwards)) as machine:
        machine.start(snapshots.INSTALLED)
        vehicle = Vehicle(machine, fleet)
        vehicle.set_clock()
        vehicle.configure()
        releases.slower(machine.shell)
        vehicle.start()
        with CarProcess(tmp_path_factory.mktemp("car"), machine.sockets):
            yield vehicle


def begin(vehicle: Vehicle, version: str, kind: Release) -> str:
    """A lease at work, and a release that waits; the job's name."""
    job = vehicle.fleet.order(40)
    vehicle.until_computing(LEASE_S)
    releases.stage(vehicle.shell, version, kind)
    vehicle.shell.check(f"systemctl start --no-block {releases.UNIT}")
    return job


def holds(vehicle: Vehicle, job: str) -> None:
    """An agent works, everything that was ordered is settled, and both books say the same."""
    until("the agent answers", vehicle.status, ANSWER_S, poll_s=1.0)
    until(f"{job} is settled", lambda: vehicle.fleet.done(job), LEASE_S)
    after = vehicle.fleet.order(8)
    until("it works again", lambda: vehicle.fleet.done(after), LEASE_S)
    status = vehicle.until_status("nothing is owed", "outbox.pending", 0, LEASE_S)
    assert status["ledger"]["dispute"] == ""
    assert vehicle.fleet.audit(vehicle.book(vehicle.machine.folder)) == []


@pytest.mark.parametrize(
    ("number", "kind", "end"),
    [
        (1, Release.GOOD, "committed"),
        (2, Release.CRASHES, "rolled_back"),
        (3, Release.FLIPPED_BYTE, "refused"),
        (4, Release.FAILS_SELF_TEST, "rolled_back"),
        (5, Release.HANGS, "rolled_back"),
    ],
)
def test_a_release(vehicle: Vehicle, number: int, kind: Release, end: str) -> None:
    before, version = releases.link(vehicle.shell, "good"), f"1.0.{number}"
    job = begin(vehicle, version, kind)
    until(f"{version} is decided on", lambda: releases.decided(vehicle.shell, version), DECIDED_S, poll_s=2.0)
    assert releases.decided(vehicle.shell, version) == end, vehicle.journal(60)
    runs = version if end == "committed" else before
    assert (releases.link(vehicle.shell, "current"), releases.link(vehicle.shell, "good")) == (runs, runs)
    assert vehicle.unit("ActiveState") == "active"
    assert f"/{runs}/" in vehicle.shell.check("ps -o args= -C driveway")
    holds(vehicle, job)


@pytest.mark.parametrize("number", range(CUTS))
def test_the_power_goes_at_a_random_moment_of_an_update(vehicle: Vehicle, number: int) -> None:
    dice = random.Random(number)
    kind, delay_s = dice.choice((Release.GOOD, Release.GOOD, Release.CRASHES)), dice.uniform(0.2, LONGEST_CUT_S)
    before, version = releases.link(vehicle.shell, "good"), f"1.1.{number}"
    job = begin(vehicle, version, kind)
    time.sleep(delay_s)
    vehicle.machine.power_cut()
    vehicle.machine.start()
    vehicle.set_clock()
    assert releases.link(vehicle.shell, "current") in {before, version}
    vehicle.shell.check(f"systemctl start --no-block {releases.UNIT}")  # as its timer does, two minutes after a boot
    end = "committed" if kind is Release.GOOD else "rolled_back"
    until(f"{version} is decided on", lambda: releases.decided(vehicle.shell, version), DECIDED_S, poll_s=2.0)
    assert releases.decided(vehicle.shell, version) == end, f"cut after {delay_s:.1f} s: {vehicle.journal(60)}"
    runs = version if end == "committed" else before
    assert releases.link(vehicle.shell, "current") == runs
    assert vehicle.unit("ActiveState") == "active"
    holds(vehicle, job)
