"""`driveway keys`: from the daemon where one runs, from the state directory where none does, and it changes nothing."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from agent.cli import exits
from agent.cli.main import main
from agent.config import load
from agent.control import ControlRequest
from agent.control_server import ControlServer
from agent.key_view import look
from agent.trust.hardware import HardwareSigner
from agent.trust.keyring import unit_key
from agent.trust.keys import FileSigner, load_public_key
from hil.emulated_keys import EmulatedTpm
from tests.trust.hardware_keys import needs_swtpm

CONFIG = """
state_dir = "state"
control_socket = "control.sock"
unit = { id = "car-0001" }
vehicle.profiles = ["tesla-model3"]
vehicle.bus = [{ name = "party", interface = "socketcan", channel = "can0" }]
inference = { packages_dir = "packages", publisher_key = "publisher.pub" }
fleet = { brokers = ["127.0.0.1:1883"], dispatcher_key = "dispatcher.pub" }
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def car(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    (tmp_path / "agent.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def run(car: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def verb(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["keys", "--config", str(car / "agent.toml"), *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return verb


@pytest.fixture
def tpm(car: Path) -> Iterator[EmulatedTpm]:
    with EmulatedTpm(car / "emulated") as emulated:
        section = f'[trust.key]\nbackend = "tpm"\n[trust.key.tpm]\ndevice = "{emulated.address}"\nlimit_s = 0.5\n'
        (car / "agent.toml").write_text(CONFIG + section)
        yield emulated


def key_of(car: Path) -> HardwareSigner:
    config = load(car / "agent.toml")
    return asyncio.run(unit_key(config.key, car / "state"))


def test_a_file_key_is_shown_without_a_daemon(car: Path, run: Run) -> None:
    status, _, err = run()
    assert (status, list((car / "state").iterdir())) == (exits.FAILED, [])
    assert "there is no key" in err
    signer = FileSigner.open_or_create(car / "state" / "unit.key")
    status, out, _ = run()
    assert status == exits.FINE
    for line in (
        "backend     file (protection: file)",
        f"keyid       {signer.keyid}",
        "epoch       1",
        "state       ready, a signature in ",
        "seen by     the state directory; no daemon runs",
        signer.public_key_pem(),
    ):
        assert line in out
    assert [path.name for path in (car / "state").iterdir()] == ["unit.key"]


@needs_swtpm
def test_a_key_in_a_tpm_is_shown_with_its_tpm_and_without_it(car: Path, run: Run, tpm: EmulatedTpm) -> None:
    key = key_of(car)
    status, out, _ = run("--json")
    said = json.loads(out)
    assert status == exits.FINE
    assert (said["source"], said["backend"], said["protection"]) == ("state directory", "tpm", "ftpm")
    assert (said["state"], said["reason"], said["tpm"]["manufacturer"]) == ("ready", "", "IBM")
    assert said["sign_ms"] > 0
    assert load_public_key(said["public_key_pem"]) == load_public_key(key.public_key_pem())
    assert "tpm         IBM SW" in run()[1]

    tpm.hang()
    status, out, _ = run()
    assert status == exits.DEGRADED
    assert "state       slow" in out
    assert "because     the TPM " in out
    assert "did not answer within 0.5 s" in out
    tpm.hang(hanging=False)

    tpm.stop()
    status, out, _ = run("--json")
    said = json.loads(out)
    assert (status, said["state"], said["keyid"], said["tpm"], said["sign_ms"]) == (
        exits.DEGRADED,
        "absent",
        key.keyid,
        None,
        None,
    )
    assert said["reason"].startswith("no TPM answers")


def test_a_daemon_is_asked_where_one_runs(car: Path, run: Run) -> None:
    key, ready, over = key_of(car), threading.Event(), threading.Event()

    async def answer(request: ControlRequest) -> object:
        assert request.verb == "keys"
        return await look(key)

    async def serve() -> None:
        server = ControlServer(car / "control.sock", answer)
        await server.start()
        ready.set()
        await asyncio.to_thread(over.wait)
        await server.close()

    daemon = threading.Thread(target=lambda: asyncio.run(serve()))
    daemon.start()
    try:
        assert ready.wait(10)
        status, out, _ = run("--json")
    finally:
        over.set()
        daemon.join()
    assert status == exits.FINE
    assert (json.loads(out)["source"], json.loads(out)["keyid"]) == ("daemon", key.keyid)


def test_a_certificate_request_is_for_the_unit(car: Path, run: Run) -> None:
    signer = FileSigner.open_or_create(car / "state" / "unit.key")
    status, out, _ = run("--csr")
    assert status == exits.FINE
    request = x509.load_pem_x509_csr(out.encode())
    assert request.is_signature_valid
    assert request.public_key() == signer.public_key()
    assert request.subject.rfc4514_string() == "CN=car-0001"
