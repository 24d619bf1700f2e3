"""`driveway doctor`: each check against what it looks for, there and planted; what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agent import __version__
from agent.cli import exits
from agent.cli.doctor import command, computer, configuration, daemon, keys, service
from agent.cli.doctor.model import Finding, Result, carried_out, fail, ok, warn, worst
from agent.cli.main import main
from agent.config import Config, load
from agent.errors import WorkerError
from agent.fleet.tls import TlsFiles
from agent.vehicle.profile import load_profile
from hil.certificates import Authority
from tests.daemon.test_shutdown import configured


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configured(tmp_path)


def named(findings: list[Finding]) -> dict[str, Result]:
    return {one.name: one.result for one in findings}


# --- how checks are run ---------------------------------------------------------------------------------------


def test_a_check_that_crashes_is_itself_a_finding() -> None:
    def crashes() -> Finding:
        raise ZeroDivisionError("planted")

    (found,) = carried_out("disk", crashes)
    assert (found.name, found.result) == ("disk", Result.FAIL)
    assert "ZeroDivisionError('planted')" in found.detail
    assert "report" in found.mend


def test_a_check_that_crashes_half_way_through_is_one_too() -> None:
    def crashes() -> Iterator[Finding]:
        yield ok("keys.one", "well")
        raise ZeroDivisionError

    assert [one.result for one in carried_out("keys", crashes)] == [Result.FAIL]


def test_an_error_of_ours_brings_its_mend() -> None:
    def refuses() -> Finding:
        raise WorkerError("no worker", hint="start one")

    assert carried_out("worker", refuses) == [fail("worker", "no worker", "start one")]


@pytest.mark.parametrize(
    ("findings", "reachable", "expected"),
    [
        ([], True, ("ok", 0)),
        ([ok("a", "")], True, ("ok", 0)),
        ([warn("a", "", "")], True, ("degraded", 4)),
        ([warn("a", "", ""), fail("b", "", "")], True, ("failed", 1)),
        ([ok("a", "")], False, ("unreachable", 3)),
        ([warn("a", "", "")], False, ("unreachable", 3)),
        ([fail("a", "", "")], False, ("failed", 1)),
    ],
)
def test_exit_codes(findings: list[Finding], reachable: bool, expected: tuple[str, int]) -> None:
    assert command.judged(findings, reachable=reachable) == expected


def test_missing_counts_as_neither() -> None:
    assert worst([Finding("a", Result.MISSING, "")]) is Result.OK


# --- offline --------------------------------------------------------------------------------------------------


def test_a_configuration_that_is_wrong_is_told_with_its_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("state_dirr = 'x'\n")
    assert main(["doctor", "--offline", "--json", "--config", str(path)]) == exits.FAILED
    said = json.loads(capsys.readouterr().out)
    assert said["checks"] == [
        {
            "name": "config",
            "result": "fail",
            "detail": f"{path}:1: unknown key 'state_dirr'",
            "mend": "did you mean state_dir?",
            "group": "Configuration",
            "meaning": "Without a right configuration the daemon does not start.",
        }
    ]


def test_text_names_every_finding_and_its_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configured(tmp_path)
    code = main(["doctor", "--offline", "--config", str(tmp_path / "agent.toml")])
    out = capsys.readouterr().out
    assert code == exits.FAILED  # this car has no bus that tells its charge
    assert "fail" in out
    assert "→ map them in a vehicle profile" in out
    assert out.splitlines()[-1].count(" ok") == 1


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (lambda folder: (folder / "agent.toml").chmod(0o666), "permissions.config"),
        (lambda folder: (folder / "agent.toml.d").chmod(0o777), "permissions.config"),
        (lambda folder: (folder / "agent.toml.d/a.toml").chmod(0o666), "permissions.config"),
        (lambda folder: (folder / "state").chmod(0o777), "permissions.state"),
        (lambda folder: (folder / "state/unit.key").chmod(0o644), "permissions.secrets"),
    ],
)
def test_what_others_could_change_or_read_is_found(
    config: Config, tmp_path: Path, plant: Callable[[Path], None], name: str
) -> None:
    path = tmp_path / "agent.toml"
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "agent.toml.d").mkdir(mode=0o755)
    (tmp_path / "agent.toml.d/a.toml").touch(mode=0o644)
    (tmp_path / "state/unit.key").touch(mode=0o600)
    found = named(list(configuration.permissions(path, config)))
    assert set(found.values()) == {Result.OK}
    plant(tmp_path)
    found = named(list(configuration.permissions(path, config)))
    assert [one for one, result in found.items() if result is Result.FAIL] == [name]


@pytest.mark.parametrize(("free_mb", "expected"), [(100, Result.FAIL), (300, Result.WARN), (10_000, Result.OK)])
def test_room_on_the_disk(config: Config, monkeypatch: pytest.MonkeyPatch, free_mb: int, expected: Result) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_bavail=free_mb, f_frsize=1024**2))
    assert configuration.disk(config).result is expected


def test_signals_that_a_dbc_lacks_are_named(config: Config, tmp_path: Path) -> None:
    found = {one.name: one for one in configuration.coverage(config)}
    assert found["vehicle.dbc.tesla-model3"].result is Result.OK
    assert "StateOfCharge" in found["vehicle.leaves"].detail
    bundled = Path(load_profile("tesla-model3").folder) / "tesla-model3.toml"
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(bundled.read_text().replace('signal = "DI_gear"', 'signal = "DI_gaer"'))
    assert wrong.read_text() != bundled.read_text()
    vehicle = msgspec.structs.replace(config.vehicle, profiles=(str(wrong),))
    (said,) = carried_out("vehicle", lambda: configuration.coverage(msgspec.structs.replace(config, vehicle=vehicle)))
    assert said.result is Result.FAIL
    assert "DI_gaer" in said.detail
    assert "DI_gear" in said.mend


def test_keys_that_are_not_there(config: Config, tmp_path: Path) -> None:
    assert set(named(list(keys.trusted(config))).values()) == {Result.OK}
    (tmp_path / "key.pem").write_text("no key")
    assert set(named(list(keys.trusted(config))).values()) == {Result.FAIL}


def test_a_tpm_that_is_not_there(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(path.read_text() + f'[trust.key]\nbackend = "tpm"\ntpm.device = "unix:{tmp_path}/tpm"\n')
    found = keys.own(load(path))
    assert found.result is Result.FAIL
    assert "is not there" in found.detail
    (tmp_path / "tpm").touch()
    assert keys.own(load(path)).result is Result.OK


@pytest.mark.parametrize(
    ("valid_s", "from_s", "expected"),
    [(60 * 86_400, -10, Result.OK), (86_400, -10, Result.WARN), (-60, -3_600, Result.FAIL)],
)
def test_certificates_that_expire_are_told_in_time(
    config: Config, tmp_path: Path, valid_s: float, from_s: float, expected: Result
) -> None:
    tls = Authority(tmp_path / "tls").issue("unit-1", valid_s=valid_s, from_s=from_s)
    config = msgspec.structs.replace(config, fleet=msgspec.structs.replace(config.fleet, tls=tls))
    assert named(list(keys.certificates(config)))["keys.tls.certificate"] is expected


def test_a_credential_is_for_the_service_alone(config: Config) -> None:
    tls = TlsFiles(ca="credential:ca", certificate="credential:certificate", key="credential:key")
    config = msgspec.structs.replace(config, fleet=msgspec.structs.replace(config.fleet, tls=tls))
    assert set(named(list(keys.certificates(config))).values()) == {Result.MISSING}


def test_an_engine_that_is_not_installed_is_named(config: Config) -> None:
    inference = msgspec.structs.replace(config.inference, executor="tensorrt_rtx", worker_python="/nowhere/python3")
    found = {one.name: one for one in computer.engine(msgspec.structs.replace(config, inference=inference))}
    assert found["engine.bindings"].result is Result.FAIL
    if not any(Path(node).exists() for node in computer.NODES):
        assert found["engine.device"].result is Result.FAIL
    assert named(list(computer.engine(config)))["engine.bindings"] is Result.OK


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("LoadState=not-found", Result.MISSING),
        ("LoadState=loaded\nActiveState=failed\nResult=watchdog", Result.FAIL),
        ("LoadState=loaded\nActiveState=inactive\nUnitFileState=enabled", Result.WARN),
        ("LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nNRestarts=3", Result.WARN),
        ("LoadState=loaded\nActiveState=active\nUnitFileState=disabled\nNRestarts=0", Result.WARN),
        ("LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nNRestarts=0", Result.OK),
        ("LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nWatchdogUSec=10s", Result.OK),
        ("LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nWatchdogUSec=infinity", Result.WARN),
        ("LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nNoNewPrivileges=no", Result.WARN),
    ],
)
def test_units(config: Config, tmp_path: Path, said: str, expected: Result) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\ncat <<END\n{said}\nEND\n")
    systemctl.chmod(0o755)
    (found,) = service.units(config, booted=tmp_path, systemctl=str(systemctl))
    assert found.result is expected
    (found,) = service.units(config, booted=tmp_path / "not", systemctl=str(systemctl))
    assert found.result is Result.MISSING


# --- what the daemon says -------------------------------------------------------------------------------------

CATALOGUE: dict[str, Any] = {
    "root": 1, "expired": False, "expires_at": "2026-04-01T00:00:00Z", "checked_at": "2026-03-01T00:00:00Z",
    "error": "", "clock_behind_s": 0,
}  # fmt: skip
WELL: dict[str, Any] = {
    "catalogue": CATALOGUE,
    "version": __version__,
    "state": "ready",
    "gate": "open",
    "reasons": [],
    "link": {"connected": True, "broker": "b:8883", "detail": ""},
    "sources": [{"name": "can0", "alive": True, "detail": ""}],
    "outbox": {"pending": 0},
    "ledger": {"size": 3, "witnessed": 3, "dispute": "", "unpaid_since": ""},
    "accelerator": {
        "state": "ready", "executor": "tensorrt", "version": "10.3", "device": "Orin", "detail": "", "plans_missing": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("check", "change", "expected"),
    [
        ("daemon.version", {"version": "0.0.1"}, Result.WARN),
        ("daemon.gate", {"reasons": [{"gate": "storage", "state": "closed", "text": "full"}]}, Result.FAIL),
        ("daemon.gate", {"reasons": [{"gate": "self_test", "state": "closed", "text": "no key"}]}, Result.FAIL),
        ("daemon.gate", {"reasons": [{"gate": "parked", "state": "closed", "text": "it drives"}]}, Result.OK),
        ("daemon.link", {"link": {"connected": False, "broker": "", "detail": "refused"}}, Result.WARN),
        ("daemon.sources", {"sources": [{"name": "can0", "alive": False, "detail": "bus off"}]}, Result.WARN),
        ("daemon.store", {"state": "fault"}, Result.FAIL),
        ("daemon.ledger", {"ledger": {**WELL["ledger"], "dispute": "two roots"}}, Result.FAIL),
        ("daemon.ledger", {"ledger": {**WELL["ledger"], "unpaid_since": "2026"}}, Result.WARN),
        ("daemon.catalogue", {"catalogue": {**CATALOGUE, "root": None, "error": "404"}}, Result.WARN),
        ("daemon.catalogue", {"catalogue": {**CATALOGUE, "expired": True}}, Result.WARN),
        ("daemon.catalogue", {"catalogue": {**CATALOGUE, "clock_behind_s": 90}}, Result.WARN),
        ("daemon.catalogue", {"catalogue": None}, Result.MISSING),
        ("daemon.accelerator", {"accelerator": {**WELL["accelerator"], "state": "lost"}}, Result.FAIL),
        ("daemon.accelerator", {"accelerator": {**WELL["accelerator"], "state": "absent"}}, Result.FAIL),
        ("daemon.accelerator", {"accelerator": {**WELL["accelerator"], "state": "starting"}}, Result.MISSING),
        ("daemon.accelerator", {"accelerator": {**WELL["accelerator"], "plans_missing": 2}}, Result.OK),
    ],
)
def test_what_is_made_of_a_status(check: str, change: dict[str, Any], expected: Result) -> None:
    assert daemon._CHECKS[check](WELL).result is Result.OK
    assert daemon._CHECKS[check]({**WELL, **change}).result is expected


def test_what_is_made_of_a_self_test() -> None:
    assert [one.result for one in daemon._steps({"disk_writes": "", "ledger_holds": ""})] == [Result.OK]
    (found,) = daemon._steps({"disk_writes": "", "ledger_holds": "the ledger is damaged"})
    assert (found.name, found.result) == ("daemon.self_test.ledger_holds", Result.FAIL)


@pytest.mark.parametrize(
    ("result", "expected"), [("passed", Result.OK), ("failed", Result.FAIL), ("none", Result.MISSING)]
)
def test_what_is_made_of_a_golden_vector(result: str, expected: Result) -> None:
    proof = {
        "result": result, "detail": "item 0 gave 1", "package": "ocr", "executor": "tensorrt", "device": "Orin",
        "took_ms": 700, "confinement": {"system_calls": "enforced", "landlock_tcp": "absent: an old kernel"},
    }  # fmt: skip
    found = {one.name: one for one in daemon._golden(proof)}
    assert found["daemon.golden"].result is expected
    if result == "passed":
        assert found["daemon.cage"].detail == "1 measures stand; landlock_tcp: absent: an old kernel"


def test_a_key_that_does_not_sign() -> None:
    one = {"backend": "tpm", "epoch": 1, "state": "ready", "reason": "", "sign_ms": 12.5}
    assert daemon._key(one).result is Result.OK
    assert daemon._key({**one, "state": "failed", "sign_ms": None, "reason": "it hangs"}).result is Result.FAIL


def test_packages_that_are_refused() -> None:
    good, bad = {"folder": "ocr", "state": "ready"}, {"folder": "evil", "state": "refused", "detail": "not signed"}
    assert [one.result for one in daemon._packages([good])] == [Result.OK]
    assert [one.result for one in daemon._packages([good, bad])] == [Result.WARN]
    assert [one.result for one in daemon._packages([])] == [Result.WARN]
