"""`driveway doctor` on buses and brokers, each against the real thing or what the kernel would show of it."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from agent.cli.doctor import computer, network
from agent.cli.doctor.meaning import GROUPS, MEANINGS, group_of, meaning_of
from agent.cli.doctor.model import Result
from agent.config import Config
from agent.vehicle.source import BusConfig
from hil.certificates import Authority
from kernels import fatbin
from tests.daemon.test_shutdown import configured


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configured(tmp_path)


# --- buses ------------------------------------------------------------------------------------------------------------


def interface(folder: Path, name: str, kind: str, flags: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "type").write_text(f"{kind}\n")
    (folder / name / "flags").write_text(f"{flags}\n")


def ip(folder: Path, state: str, modes: str = '"LISTEN-ONLY"') -> str:
    tool = folder / "ip"
    said = f'[{{"linkinfo": {{"info_data": {{"state": "{state}", "ctrlmode": [{modes}]}}}}}}]'
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    tool.chmod(0o755)
    return str(tool)


@pytest.mark.parametrize(
    ("shown", "expected", "said"),
    [
        (("280", "0x40081", "ERROR-ACTIVE"), Result.OK, "listens only"),
        (("280", "0x40080", "STOPPED"), Result.WARN, "can0 is down"),
        (("1", "0x1003", ""), Result.WARN, "is no CAN interface"),
        (("280", "0x40081", "BUS-OFF"), Result.WARN, "is BUS-OFF"),
        (("280", "0x40081", "ERROR-PASSIVE"), Result.WARN, "is ERROR-PASSIVE"),
    ],
)
def test_a_bus(config: Config, tmp_path: Path, shown: tuple[str, str, str], expected: Result, said: str) -> None:
    kind, flags, state = shown
    interface(tmp_path / "net", "can0", kind, flags)
    bus = BusConfig(name="party", interface="socketcan", channel="can0")
    vehicle = msgspec.structs.replace(config.vehicle, bus=(bus,))
    config = msgspec.structs.replace(config, vehicle=vehicle)
    (found,) = network.buses(config, tmp_path / "net", ip(tmp_path, state))
    assert (found.name, found.result) == ("vehicle.bus.party", expected)
    assert said in found.detail


def test_a_bus_that_is_not_there_tells_those_that_are(config: Config, tmp_path: Path) -> None:
    interface(tmp_path / "net", "can1", "280", "0x1")
    interface(tmp_path / "net", "eth0", "1", "0x1")
    bus = BusConfig(name="party", interface="socketcan", channel="can0")
    config = msgspec.structs.replace(config, vehicle=msgspec.structs.replace(config.vehicle, bus=(bus,)))
    (found,) = network.buses(config, tmp_path / "net")
    assert found.result is Result.WARN
    assert found.mend.startswith("CAN interfaces here: can1;")


# --- brokers ----------------------------------------------------------------------------------------------------------


def at(config: Config, port: int, **changes: object) -> Config:
    fleet = msgspec.structs.replace(config.fleet, brokers=(f"localhost:{port}",), **changes)
    return msgspec.structs.replace(config, fleet=fleet)


@contextmanager
def answering(answer: bytes, heard: list[bytes], context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Somebody who answers one connection with these bytes."""
    with socket.create_server(("localhost", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                try:
                    link = context.wrap_socket(connection, server_side=True) if context else connection
                    with link:
                        heard.append(link.recv(100))
                        link.sendall(answer)
                        link.recv(100)
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)


def hang_up(server: socket.socket) -> None:
    """On whoever comes first."""
    server.accept()[0].close()


@pytest.mark.parametrize(
    ("answer", "expected", "said"),
    [
        (b"\x20\x03\x00\x00\x00", Result.OK, "reached, and it lets this unit in"),
        (b"\x20\x03\x00\x85\x00", Result.OK, "lets this unit in"),
        (b"\x20\x03\x00\x87\x00", Result.WARN, "it refuses a login: not authorised"),
        (b"\x20\x03\x00\xfe\x00", Result.WARN, "reason 0xfe"),
        (b"HTTP/1.1 400 Bad Request\r\n", Result.WARN, "does not answer as an MQTT broker: what came is no CONNACK"),
        (b"", Result.WARN, "does not answer as an MQTT broker"),
    ],
)
def test_what_a_broker_answers(config: Config, answer: bytes, expected: Result, said: str) -> None:
    heard: list[bytes] = []
    if not answer:
        with socket.create_server(("localhost", 0)) as server:
            thread = threading.Thread(target=hang_up, args=(server,))
            thread.start()
            (found,) = network.brokers(at(config, server.getsockname()[1]))
            thread.join(10)
    else:
        with answering(answer, heard) as port:
            (found,) = network.brokers(at(config, port))
        assert b"unit-1-doctor-" in heard[0]
    assert found.result is expected
    assert said in found.detail


def test_a_broker_that_is_not_there_or_not_known(config: Config) -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    (found,) = network.brokers(at(config, port))
    assert (found.result, found.detail) == (Result.WARN, "it cannot be reached: Connection refused")
    fleet = msgspec.structs.replace(config.fleet, brokers=("nowhere.invalid:8883",))
    (found,) = network.brokers(msgspec.structs.replace(config, fleet=fleet), timeout_s=2.0)
    assert found.result is Result.WARN
    assert "nowhere.invalid" in found.name


def test_a_broker_that_says_nothing_is_not_waited_for(config: Config) -> None:
    with socket.create_server(("localhost", 0)) as server:
        (found,) = network.brokers(at(config, server.getsockname()[1]), timeout_s=0.2)
    assert found.result is Result.WARN
    assert "timed out" in found.detail or "no answer" in found.detail


def test_a_certificate_that_does_not_count_is_told(config: Config, tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    server = theirs.issue("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    for files, expected in ((ours.issue("unit-1"), Result.WARN), (theirs.issue("unit-2"), Result.OK)):
        with answering(b"\x20\x03\x00\x00\x00", [], context) as port:
            pair, found = network.brokers(at(config, port, tls=files))
        assert (pair.name, pair.result, found.result) == ("broker.tls", Result.OK, expected)
        assert ("is not trusted" in found.detail) == (expected is Result.WARN)


def test_a_key_that_does_not_belong_to_the_certificate_is_told(config: Config, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    one, other = authority.issue("unit-1"), authority.issue("unit-2")
    (found,) = network.brokers(at(config, 1, tls=msgspec.structs.replace(one, key=other.key)))
    assert (found.name, found.result) == ("broker.tls", Result.WARN)
    assert "belong together" in found.mend


# --- kernels and meanings ---------------------------------------------------------------------------------------------


def test_kernels_that_are_damaged_or_missing(tmp_path: Path) -> None:
    assert computer._kernels(tmp_path).result is Result.FAIL
    folder = fatbin.default_folder()
    if not (folder / fatbin.MANIFEST).is_file():
        pytest.skip("the kernels are not built")
    manifest = fatbin.read_manifest(folder)
    for name in (fatbin.MANIFEST, *(one.name for one in manifest.files)):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert computer._kernels(tmp_path).result is Result.OK
    body = bytearray((tmp_path / manifest.files[0].name).read_bytes())
    body[len(body) // 2] ^= 1
    (tmp_path / manifest.files[0].name).write_bytes(body)
    found = computer._kernels(tmp_path)
    assert found.result is Result.FAIL
    assert "is damaged" in found.detail


def test_every_check_has_a_group_and_a_meaning() -> None:
    for name in MEANINGS:
        assert group_of(name) in {group.title for group in GROUPS}, name
    for name in ("vehicle.bus.party", "broker.b:1", "daemon.self_test.disk_writes", "units.driveway.service", "disk"):
        assert meaning_of(name), name
    assert meaning_of("something.new") == ""
    assert group_of("something.new") == "Other"
