"""The probe finds every hole that is left open on purpose, and none in a broker that is guarded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.errors import ConfigError
from hil import cli
from hil.acl import admission, command, guarded, probe
from hil.acl.findings import Outcome, Report
from hil.acl.guarded import Access, GuardedMosquitto, Member, dynamic_security
from hil.acl.target import Target, target_from_files
from hil.broker import free_port
from hil.certificates import Authority
from tests.tools import needs

pytestmark = pytest.mark.long

CARS = [Member(command.CAR, command.CELL), Member(command.VICTIM, command.CELL)]
ALL = (command.CAR, command.VICTIM, command.DISPATCHER)

needs_mosquitto = needs(GuardedMosquitto.binary() and GuardedMosquitto.plugin(), "mosquitto is not installed")


class ByAccessFile(GuardedMosquitto):
    """Mosquitto with an `acl_file`, which lets any car join the dispatchers' share group."""

    def command(self) -> list[str]:
        made = super().command()
        rules = self._folder / "acl"
        rules.write_text(
            f"user {command.DISPATCHER}\ntopic readwrite dw/v1/#\n"
            "pattern write dw/v1/u/+/%u/+\npattern read dw/v1/d/%u/+\npattern read dw/v1/b/+/pace\n",
            "ascii",
        )
        rules.chmod(0o644)
        conf = Path(made[-1])
        lines = [line for line in conf.read_text("ascii").splitlines() if not line.startswith("plugin")]
        conf.write_text("\n".join([*lines, f"acl_file {rules}", ""]), "ascii")
        return made


@contextmanager
def broker(folder: Path, kind: type[GuardedMosquitto] = GuardedMosquitto, **how: Any) -> Iterator[Target]:
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)  # as root, mosquitto reads its files as another user
    authority = Authority(folder / "pki")
    (folder / "pki").chmod(0o755)
    security = dynamic_security(CARS, [command.DISPATCHER], command.SHARE_GROUP)
    server = authority.issue("broker")
    with kind(folder / "broker", free_port(), tls=server, security=security, **how) as running:
        tls = tuple(authority.issue(name) for name in ALL)
        yield Target(
            host="127.0.0.1",
            port=running.port,
            car=command.CAR,
            victim=command.VICTIM,
            dispatcher=command.DISPATCHER,
            cell=command.CELL,
            share_group=command.SHARE_GROUP,
            tls=(tls[0], tls[1], tls[2]),
        )


@needs_mosquitto
def test_a_guarded_broker_stops_every_attack(tmp_path: Path) -> None:
    with broker(tmp_path) as target:
        report = probe.probe(target)
    assert [one for one in report.findings if not one.held] == []
    assert report.held
    assert len(report.findings) > 12


SYS = "listening to $SYS/#"
ATTACKER = command.CAR
HOLES = {
    "listening to $share/evil/dw/v1/u/+/+/+": [
        Access("subscribeLiteral", "$share/evil/dw/v1/u/+/+/+"),
        Access("publishClientReceive", "dw/v1/u/+/+/+"),
    ],
    SYS: [Access("subscribeLiteral", "$SYS/#"), Access("publishClientReceive", "$SYS/#")],
    "orders to $CONTROL/dynamic-security/v1": [Access("publishClientSend", "$CONTROL/dynamic-security/v1")],
    "a request in another cell": [Access("publishClientSend", f"dw/v1/u/+/{ATTACKER}/request")],
    "listening to another cell's pace": [
        Access("subscribePattern", "dw/v1/b/+/pace"),
        Access("publishClientReceive", "dw/v1/b/+/pace"),
    ],
    "a retained message on a topic it invents": [Access("publishClientSend", f"dw/v1/u/{command.CELL}/{ATTACKER}/+")],
}


@needs_mosquitto
def test_each_hole_is_found_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, open_to_a_car = guarded.car_access, [access for hole in HOLES.values() for access in hole]
    monkeypatch.setattr(guarded, "car_access", lambda car: real(car) + open_to_a_car)
    monkeypatch.setattr(guarded, "CONF", guarded.CONF + "log_dest topic\nlog_type all\n")
    with broker(tmp_path) as target:
        found = probe.probe(target)
        assert {one.attack for one in found.findings if not one.held} == set(HOLES)
        assert probe.probe(target).findings == found.findings, "what was tried left nothing behind"


@needs_mosquitto
def test_a_car_that_may_set_the_pace_may_leave_one_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, pace = guarded.car_access, Access("publishClientSend", f"dw/v1/b/{command.CELL}/pace")
    monkeypatch.setattr(guarded, "car_access", lambda car: [*real(car), pace])
    with broker(tmp_path) as target:
        for _ in range(2):  # what was left behind was taken away
            found = {one.attack: one.outcome for one in probe.leaves_messages_behind(target)}
            assert found["a retained pace"] is Outcome.WORKED
        with target.visit(command.VICTIM) as later:
            later.subscribe(pace.topic)
            assert not later.hears(b"", patience_s=0.3)
            assert later.heard == set()


@needs_mosquitto
def test_what_mosquitto_cannot_refuse_is_told_with_its_bound(tmp_path: Path) -> None:
    with broker(tmp_path) as target:
        found = {one.attack: one for one in probe.leaves_messages_behind(target)}
    one = found["a retained message under its own name"]
    assert (one.outcome, one.held) == (Outcome.BOUNDED, True)


@needs_mosquitto
@pytest.mark.parametrize(
    ("version", "allowed", "worked"),
    [("tlsv1.2", "", ["TLS 1.2"]), ("tlsv1.1", "ciphers DEFAULT@SECLEVEL=0\n", ["TLS 1.2", "TLS 1.1"])],
)
def test_a_broker_that_speaks_an_old_tls_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, allowed: str, worked: list[str]
) -> None:
    conf = guarded.CONF.replace("tls_version tlsv1.3\n", f"tls_version {version}\n{allowed}")
    assert conf != guarded.CONF
    monkeypatch.setattr(guarded, "CONF", conf)
    with broker(tmp_path) as target:
        found = list(admission.speaks_an_old_tls(target))
    assert [one.attack for one in found if one.outcome is Outcome.WORKED] == worked


@needs_mosquitto
def test_an_expired_certificate_is_tried_where_there_is_one(tmp_path: Path) -> None:
    with command.broker_here("mosquitto") as target:
        assert target.expired is not None
        (found,) = admission.comes_with_an_expired_certificate(target)
        assert found.outcome is Outcome.STOPPED
    with broker(tmp_path) as target:
        (untried,) = admission.comes_with_an_expired_certificate(target)
        assert (untried.outcome, untried.held) == (Outcome.UNTRIED, True)
        assert target.tls is not None
        admitted = msgspec.structs.replace(target, expired=target.tls[0])  # a broker that does not look at the time
        (found,) = admission.comes_with_an_expired_certificate(admitted)
        assert found.outcome is Outcome.WORKED


def test_a_certificate_that_is_still_good_is_not_taken_for_an_expired_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pairs = [f"{one.certificate}:{one.key}" for one in map(authority.issue, ALL)]
    given = (pairs[0], pairs[1], pairs[2])
    where = {"cell": "00", "share_group": "g"}
    with pytest.raises(ConfigError, match="is good until"):
        target_from_files(("b", 1), tmp_path / "ca.pem", given, **where, expired=pairs[0])
    old = authority.issue("old", valid_s=-60.0)
    target = target_from_files(("b", 1), tmp_path / "ca.pem", given, **where, expired=f"{old.certificate}:{old.key}")
    assert target.expired == old


@needs_mosquitto
def test_reading_what_names_nobody_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = guarded.car_access
    monkeypatch.setattr(guarded, "car_access", lambda car: real(car) + HOLES[SYS])
    with broker(tmp_path) as target:
        (found,) = probe.reads_the_brokers_own_topics(target)
    assert found.held
    assert "none of a client" in found.detail


@needs_mosquitto
def test_a_victim_that_nobody_hears_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = guarded.car_access
    monkeypatch.setattr(guarded, "car_access", lambda car: real(car) if car.unit == command.CAR else [])
    with broker(tmp_path) as target:
        report = probe.probe(target)
        assert (report.held, len(report.findings)) == (False, 1)
        assert command.VICTIM in report.findings[0].detail
        assert {one.outcome for one in probe.speaks_for_others(target)} == {Outcome.UNPROVEN}


@needs_mosquitto
def test_an_access_file_lets_a_car_swallow_results(tmp_path: Path) -> None:
    with broker(tmp_path, ByAccessFile) as target:
        assert probe.may_do_its_own(target).held
        (joined,) = probe.joins_the_dispatchers(target)
        assert joined.outcome is Outcome.WORKED, joined.detail


@needs_mosquitto
def test_a_client_id_that_is_not_bound_to_the_certificate_can_be_taken(tmp_path: Path) -> None:
    with broker(tmp_path, binds_client_id=False) as target:
        (taken,) = probe.takes_anothers_client_id(target)
        assert taken.outcome is Outcome.WORKED, taken.detail


@needs_mosquitto
def test_a_broker_that_lets_nobody_in_proves_nothing(tmp_path: Path) -> None:
    with broker(tmp_path) as target:
        report = probe.probe(msgspec.structs.replace(target, share_group="another"))
    assert not report.held
    assert len(report.findings) == 1


def test_on_the_embedded_broker_nearly_everything_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "findings.json"
    assert cli.main(["acl-probe", "--try", "embedded", "--json", str(file)]) == 1
    report = msgspec.json.decode(file.read_bytes(), type=Report)
    worked = {one.attack for one in report.findings if one.outcome is Outcome.WORKED and not one.control}
    assert {
        "no certificate",
        "another car's client id",
        "joining the share group",
        "a will in another's name",
        "a request in another cell",
        "a retained message on a topic it invents",
        "a retained pace",
    } <= worked
    assert "attacks worked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (("nothing", "x:y", "x:y"), "is not CERTIFICATE:KEY"),
        (("a.pem:a.key", "x:y", "x:y"), "there is no file"),
        (("empty:empty", "empty:empty", "empty:empty"), "is no certificate"),
        (("one.pem:one.key", "one.pem:one.key", "one.pem:one.key"), "two different cars"),
    ],
)
def test_wrong_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: tuple[str, str, str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    Authority(tmp_path).issue("one")
    with pytest.raises(ConfigError, match=said):
        target_from_files(("b", 1), tmp_path / "ca.pem", pairs, cell="00", share_group="g")


def test_without_a_broker_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pairs = [
        f"--{name}={one.certificate}:{one.key}"
        for name in ("car", "victim", "dispatcher")
        for one in [authority.issue(name)]
    ]
    assert cli.main(["acl-probe", f"127.0.0.1:{free_port()}", "--ca", str(tmp_path / "ca.pem"), *pairs]) == 1
    assert "there is no broker at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--try", "mosquitto", "--json", "/nowhere/x"], "there is no folder /nowhere"),
        (["--try", "mosquitto", "--json", "/tmp"], "it is a folder"),
        (["127.0.0.1:1883", "--try", "mosquitto"], "takes no HOST:PORT"),
        (["--try", "mosquitto", "--cell", "0b"], "takes no HOST:PORT"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_tried(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "broker_here", None)
    assert cli.main(["acl-probe", *arguments]) == 1
    assert said in capsys.readouterr().err
