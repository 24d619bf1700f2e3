"""The real daemon against a real broker, the dispatcher and the simulated car: hard nights in which nothing is lost.

Each test is one night on a rig of its own processes. They take a while, and judge only what must hold, never how fast.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.trust.bundle import result_bundle
from agent.trust.dsse import canonical_json
from hil.cli import main as driveway_hil
from hil.dispatcher.view import Attestation, View
from hil.images import drawn_lines
from hil.rig import Rig
from tests.state_files import unnamed

pytestmark = pytest.mark.long

WAIT_S = 120.0
NOT_AN_IMAGE = b"\x89PNG\r\n\x1a\nthis is not an image"


def wait(rig: Rig, what: str, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until the daemon's status is as it should be."""
    deadline_s = time.monotonic() + WAIT_S
    status = None
    while time.monotonic() < deadline_s:
        status = rig.status()
        if status is not None and reached(status):
            return status
        time.sleep(0.1)
    raise AssertionError(f"waited in vain for {what}; the last status was {status}")


def driveway(rig: Rig, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a technician does."""
    command = [sys.executable, "-m", "agent", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"DRIVEWAY_CONFIG": str(rig.config)},
    )


def kinds(rig: Rig) -> set[str]:
    """Of the leaves in the ledger."""
    return {leaf["kind"] for leaf in rig.ask("ledger", limit=1000)["leaves"]}


def all_done(view: View) -> bool:
    return all(job.state == "done" for job in view.jobs())


def test_nothing_is_lost_or_paid_twice_when_daemon_broker_and_dispatcher_die(tmp_path: Path) -> None:
    with Rig(tmp_path / "rig") as rig:
        package = rig.build_package()
        lines = [image.png for image in drawn_lines(95, 7)]
        jobs = [
            rig.submit(package, items, slice_items=8, price_micro_per_item=10)
            for items in (lines[:48], [*lines[48:], NOT_AN_IMAGE])
        ]
        rig.start()
        rig.car("driver_leaves")
        wait(rig, "two slices on disk", lambda status: status["slices"]["kept"] >= 2)
        rig.stop("daemon", signal.SIGKILL)
        rig.start_daemon()
        wait(rig, "what was left to be handed in", lambda _status: "statement" in kinds(rig))
        wait(rig, "work to go on", lambda status: status["slices"]["kept"] >= 1)
        rig.broker.kill()
        wait(rig, "the link to be down", lambda status: not status["link"]["connected"])
        rig.stop("dispatcher", signal.SIGKILL)
        rig.broker.start()
        rig.start_dispatcher()
        with View(rig.folder / "dispatcher") as view:
            wait(rig, "every job to be done", lambda status: all_done(view) and status["outbox"]["pending"] == 0)
            answers = [view.answers(job) for job in jobs]
            payouts = view.payouts()
            attestations = view.attestations()
        status = wait(rig, "the money to be booked", lambda status: status["earnings"]["gross"] == 95 * 10 / 1e6)
        assert [len(one) for one in answers] == [48, 48]
        assert all("text" in answer for answer in answers[0] + answers[1][:-1])
        assert "error" in answers[1][-1], "an image that cannot be decoded says so, and costs the others nothing"
        assert [payout.paid_micro for payout in payouts] == [95 * 10]
        assert status["outbox"]["pending"] == 0
        assert unnamed(rig.folder / "state") == set(), "docs/state.md names every file"
        _check_attestations(rig, tmp_path, attestations)
        _check_command_line(rig)


def _check_attestations(rig: Rig, folder: Path, attestations: list[Attestation]) -> None:
    """`driveway verify` believes every one of them, and none that was touched."""
    key = folder / "unit.pub"
    key.write_text(attestations[0].public_key_pem)
    files = []
    for number, attestation in enumerate(attestations):
        assert attestation.session is not None
        files.append(folder / f"{number}.json")
        files[-1].write_bytes(result_bundle(attestation.envelope, attestation.session))
    good = driveway(rig, "verify", "--key", str(key), *map(str, files))
    assert (good.returncode, good.stdout.count("holds")) == (0, len(files)), good.stdout
    touched = json.loads(files[0].read_bytes())
    payload = touched["statement"]["payload"]
    touched["statement"]["payload"] = payload[:-8] + "AAAA" + payload[-4:]
    files[0].write_bytes(canonical_json(touched))
    bad = driveway(rig, "verify", "--key", str(key), *map(str, files))
    assert bad.returncode == 1
    assert bad.stdout.count("does NOT hold") == 1


def _check_command_line(rig: Rig) -> None:
    """Every verb answers, in text and in JSON."""
    rig.car("open_door")
    sentence = "occupied (closed): A door or lid is open (Vehicle.Cabin.Door.Row1.DriverSide.IsOpen)."
    # What says first that somebody comes may be another frame than the door's.
    wait(rig, "the door to be named", lambda _: sentence in driveway(rig, "why").stdout)
    reasons = json.loads(driveway(rig, "why", "--json").stdout)
    assert {"code", "signal", "value", "limit", "unit", "since", "clears_at"} <= set(reasons[0])
    for verb, words in (
        ("status", ["state", "ledger", "net"]),
        ("signals", ["Vehicle.Speed", "good"]),
        ("leases", ["ocr-line", "settled"]),
        ("earnings", ["NET", "All leases"]),
        ("ledger", ["statement", "verdict", "session", "witnessed"]),
    ):
        text = driveway(rig, verb)
        assert text.returncode == 0, text.stderr
        for word in words:
            assert word in text.stdout
        json.loads(driveway(rig, verb, "--json").stdout)
    image = rig.folder / "line.png"
    image.write_bytes(drawn_lines(1, 3)[0].png)
    refused = driveway(rig, "infer", str(rig.folder / "packages" / "ocr"), str(image))
    assert refused.returncode == 5, "the driver comes first for a technician's question too"
    assert "refused by policy" in refused.stderr


def test_the_owners_word_and_the_fleets_orders_outlive_a_kill(tmp_path: Path) -> None:
    with Rig(tmp_path / "rig") as rig:
        package = rig.build_package()
        rig.submit(package, [image.png for image in drawn_lines(64, 3)], slice_items=8, price_micro_per_item=10)
        rig.start()
        rig.car("driver_leaves")
        wait(rig, "a slice on disk", lambda status: status["slices"]["kept"] >= 1)
        assert driveway(rig, "pause", "--for", "1h").returncode == 0
        wait(rig, "the pause", lambda status: status["state"] == "paused" and status["lease"] is None)
        assert driveway(rig, "owner", "set", "--classes", "speech").returncode == 0
        assert driveway_hil(["demand", "--stop-for", "1h", "--dir", str(rig.folder)]) == 0
        wait(rig, "the order", lambda _status: "demand_response" in {one["code"] for one in rig.ask("why")})
        rig.stop("daemon", signal.SIGKILL)
        rig.broker.kill()  # so that nobody tells the next run again
        rig.start_daemon()
        status = wait(rig, "the next run", lambda status: status["state"] == "paused")
        assert status["owner"]["until"] is not None
        reasons = {reason["code"] for reason in json.loads(driveway(rig, "why", "--json").stdout)}
        assert {"owner_paused", "demand_response"} <= reasons
        owner = json.loads(driveway(rig, "owner", "--json").stdout)
        assert owner["classes"] == {"value": ["speech"], "source": "owner"}


def test_a_full_disk_stops_new_work_and_loses_none(tmp_path: Path) -> None:
    with Rig(tmp_path / "rig") as rig:
        state = rig.folder / "state"
        state.mkdir()
        if (
            os.geteuid() != 0
            or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", state], check=False).returncode
        ):
            pytest.skip("a small file system cannot be mounted here (needs root)")
        try:
            _fill_the_disk(rig, state)
        finally:
            rig.stop("daemon")
            subprocess.run(["umount", state], check=True)


def _fill_the_disk(rig: Rig, state: Path) -> None:
    package = rig.build_package()
    job = rig.submit(package, [image.png for image in drawn_lines(64, 8)], slice_items=8, price_micro_per_item=10)
    rig.start()
    rig.car("driver_leaves")
    wait(rig, "a slice on disk", lambda status: status["slices"]["kept"] >= 1)
    ballast = state / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
    full = wait(rig, "the full disk to be noticed", lambda status: status["state"] == "fault")
    assert full["gate"] in {"hold", "closed"}  # closed where the machine was too busy for the car's signals meanwhile
    (told,) = (reason for reason in full["reasons"] if reason["code"] == "storage_failed")
    assert "disk" in told["text"]
    assert driveway(rig, "status").returncode == 4
    ballast.unlink()
    with View(rig.folder / "dispatcher") as view:
        wait(rig, "the job to be done", lambda status: all_done(view) and status["outbox"]["pending"] == 0)
        assert len(view.answers(job)) == 64
        assert [payout.paid_micro for payout in view.payouts()] == [64 * 10]


def test_a_tampered_package_is_refused_and_the_lease_given_back(tmp_path: Path) -> None:
    with Rig(tmp_path / "rig") as rig:
        package = rig.build_package()
        rig.submit(package, [image.png for image in drawn_lines(8, 9)], slice_items=8, price_micro_per_item=10)
        rig.start()
        (offered,) = rig.ask("packages")
        assert (offered["folder"], offered["sha256"]) == ("ocr", package.package_sha256)
        assert offered["signature"] == "signed"
        assert offered["state"] in {"waiting", "ready"}, "its executor may still be looked at"
        with (package.path / "characters.txt").open("ab") as file:
            file.write(b"!\n")
        rig.car("driver_leaves")
        status = wait(
            rig, "the lease to be given back", lambda status: bool(rig.ask("leases")) and status["lease"] is None
        )
        lease = rig.ask("leases")[0]["lease"]
        assert (lease["kind"], lease["why"]) == ("yield", "refused")
        assert status["state"] == "ready"
        log = (rig.folder / "daemon.log").read_text()
        assert "characters.txt does not have the listed SHA-256" in log
        (refused,) = rig.ask("packages")
        assert refused["state"] == "refused"
        assert "characters.txt does not have the listed SHA-256" in refused["detail"]
