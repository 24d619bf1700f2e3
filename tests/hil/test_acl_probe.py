"""The probe finds every hole that is left open on purpose, and none in a broker that is guarded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from agent.errors import ConfigError
from hil import cli
from hil.acl import command, guarded, probe
from hil.acl.guarded import Access, GuardedMosquitto, Member, dynamic_security
from hil.acl.probe import Outcome
from hil.acl.target import Target, target_from_files
from hil.broker import free_port
from hil.certificates import Authority

CARS = [Member(command.CAR, command.CELL), Member(command.VICTIM, command.CELL)]
ALL = (command.CAR, command.VICTIM, command.DISPATCHER)

needs_mosquitto = pytest.mark.skipif(
    GuardedMosquitto.binary() is None or GuardedMosquitto.plugin() is None, reason="mosquitto is not installed"
)


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
def broker(folder: Path, kind: type[GuardedMosquitto] = GuardedMosquitto, **how: bool) -> Iterator[Target]:
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


HOLES = {
    "listening to $share/evil/dw/v1/u/+/+/+": [
        Access("subscribeLiteral", "$share/evil/dw/v1/u/+/+/+"),
        Access("publishClientReceive", "dw/v1/u/+/+/+"),
    ],
    "listening to $SYS/#": [Access("subscribeLiteral", "$SYS/#"), Access("publishClientReceive", "$SYS/#")],
    "orders to $CONTROL/dynamic-security/v1": [Access("publishClientSend", "$CONTROL/dynamic-security/v1")],
}


@needs_mosquitto
@pytest.mark.parametrize("hole", HOLES)
def test_each_hole_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hole: str) -> None:
    real = guarded.car_access
    monkeypatch.setattr(guarded, "car_access", lambda car: real(car) + HOLES[hole])
    monkeypatch.setattr(guarded, "CONF", guarded.CONF + "log_dest topic\nlog_type all\n")
    with broker(tmp_path) as target:
        found = probe.probe(target)
        assert [one.attack for one in found.findings if not one.held] == [hole]
        assert probe.probe(target).findings == found.findings, "what was tried left nothing behind"


@needs_mosquitto
def test_reading_what_names_nobody_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = guarded.car_access
    monkeypatch.setattr(guarded, "car_access", lambda car: real(car) + HOLES["listening to $SYS/#"])
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
    report = msgspec.json.decode(file.read_bytes(), type=probe.Report)
    worked = {one.attack for one in report.findings if one.outcome is Outcome.WORKED and not one.control}
    assert {
        "no certificate",
        "another car's client id",
        "joining the share group",
        "a will in another's name",
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
