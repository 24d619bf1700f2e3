"""The dispatcher as a process, over real brokers and HTTP: enrol, lease, fetch, hand in, be paid; crash and go on."""

from __future__ import annotations

import asyncio
import hashlib
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from agent.core.model import Verdict
from agent.fleet.link import Link
from agent.fleet.link_config import LinkConfig
from agent.fleet.messages import UploadRef
from agent.trust.keys import keyid, load_public_key
from hil.broker import BrokerProcess, EmbeddedBroker, Mosquitto, free_port
from hil.dispatcher.__main__ import Ready
from hil.dispatcher.book import Book
from hil.dispatcher.objects import Objects
from hil.dispatcher.submit import add_job
from hil.dispatcher.view import View
from tests.hil.honest_car import PACKAGE, PRICE, Car
from tests.tools import lacking

PATIENCE_S = 20.0
"""A bound on waiting for another process; nothing is measured against it."""


class DispatcherProcess:
    """`python -m hil.dispatcher`, started and killed by the test."""

    def __init__(self, folder: Path, broker_port: int, *more: str, replica: str = "") -> None:
        self.folder = folder / "replicas" / replica if replica else folder
        self._command = [
            *(sys.executable, "-m", "hil.dispatcher", "--dir", str(folder), "--broker", f"127.0.0.1:{broker_port}"),
            *("--retry-s", "1", "--enrol-code", "welcome", *more),
            *(("--replica", replica) if replica else ()),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Ready:
        self.spawn()
        return self.ready()

    def spawn(self) -> None:
        (self.folder / "ready").unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def ready(self) -> Ready:
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE_S
        while not (self.folder / "ready").exists():
            assert self._process.poll() is None, "the dispatcher ended"
            assert time.monotonic() < deadline, "the dispatcher did not become ready"
            time.sleep(0.02)
        return msgspec.json.decode((self.folder / "ready").read_bytes(), type=Ready)

    def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(PATIENCE_S)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)


class Remote:
    """A car's side of a real broker: a link in a thread with its own loop, so that a test can simply wait."""

    def __init__(
        self, unit: str, broker_port: int, dispatcher: Ready, public_key_pem: str, topic_filter: str = ""
    ) -> None:
        self._heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.patience_s = PATIENCE_S
        self._dispatcher = dispatcher
        self._public_key = load_public_key(public_key_pem)
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._link = Link(
            LinkConfig(
                brokers=(("127.0.0.1", broker_port),),
                client_id=unit,
                filters=(topic_filter or f"dw/v1/d/{unit}/+",),
            ),
            on_message=lambda topic, payload: self._heard.put((topic, payload)),
            on_state=lambda connected, broker, detail: self._up.set() if connected else self._up.clear(),
        )
        self._loop.call_soon_threadsafe(self._link.start)
        assert self._up.wait(PATIENCE_S)

    def tell(self, topic: str, payload: bytes) -> None:
        async def publish() -> bool:
            return self._link.publish(topic, payload)

        assert self._up.wait(PATIENCE_S)
        assert asyncio.run_coroutine_threadsafe(publish(), self._loop).result(PATIENCE_S)

    def hear(self) -> tuple[str, bytes]:
        return self._heard.get(timeout=self.patience_s)

    def enrol(self, envelope: bytes) -> bytes:
        with urllib.request.urlopen(f"{self._dispatcher.http_url}/enrol", data=envelope, timeout=10) as answer:
            return bytes(answer.read())

    def bring(self, upload: UploadRef, body: bytes) -> str:
        name = hashlib.sha256(body).hexdigest()
        headers = {
            "Authorization": f"Bearer {upload.token}",
            "Content-Range": f"bytes 0-{len(body) - 1}/{len(body)}",
        }
        request = urllib.request.Request(f"{upload.url}/{name}", data=body, headers=headers, method="PUT")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status < 300
        return name

    def trusted(self) -> Mapping[str, EllipticCurvePublicKey]:
        return {keyid(self._public_key): self._public_key}

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._link.close(), self._loop).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(params=[EmbeddedBroker, Mosquitto])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerProcess]:
    if request.param is Mosquitto and Mosquitto.binary() is None:
        lacking("mosquitto is not installed")
    with request.param(tmp_path / "broker", free_port()) as running:
        yield running


def test_a_night_with_a_crash(broker: BrokerProcess, tmp_path: Path) -> None:
    folder = tmp_path / "dispatcher"
    book = Book.open(folder, lambda: 0)
    for _ in range(2):
        add_job(
            book,
            Objects(folder / "objects"),
            package=PACKAGE,
            items=[b"one", b"two"],
            slice_items=1,
            customer="customer-1",
            price_micro_per_item=PRICE,
            currency="EUR",
            ttl_s=600,
        )
    book.close()
    process = DispatcherProcess(folder, broker.port)
    ready = process.start()
    remote = Remote("car-1", broker.port, ready, (folder / "dispatcher.pub").read_text())
    try:
        car = Car(remote, "car-1", "welcome")
        grant = car.must_request()
        with urllib.request.urlopen(grant.input.url, timeout=10) as answer:
            body = answer.read()
        assert (len(body), hashlib.sha256(body).hexdigest()) == (grant.input.bytes, grant.input.sha256)
        assert msgspec.msgpack.decode(body) == [b"one", b"two"]

        assert process.end(signal.SIGKILL) != 0
        process.start()
        verdict = car.hand_in(car.result(grant, credit=1))
        assert (verdict.verdict, verdict.paid_micro) == (Verdict.SETTLED, 2 * PRICE)
        assert verdict.next_grant is not None

        rest = verdict.next_grant
        assert car.hand_in(car.yielded(rest, slices=(1,))).paid_micro == PRICE
        with View(folder) as view:  # from another process, while it runs
            assert [(job.state, job.slices_done) for job in view.jobs()] == [("done", 2), ("free", 1)]
            assert view.answers(grant.job) == [{"item": 0}, {"item": 1}]

        bulky = car.must_request()
        plain = car.result(bulky)
        car.bring(plain, bulky)
        assert car.hand_in(car.bulky(plain, bulky)).paid_micro == PRICE
        with View(folder) as view:
            assert view.answers(bulky.job) == [{"item": 0}, {"item": 1}]
        assert process.end(signal.SIGTERM) == 0
        assert not (folder / "ready").exists()
    finally:
        remote.close()
        process.kill()


def test_it_says_in_one_sentence_why_it_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "dispatcher.key").write_text("rubbish")
    command = [sys.executable, "-m", "hil.dispatcher", "--dir", str(tmp_path), "--broker", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert "chmod 600" in done.stderr
    assert "Traceback" not in done.stderr
    wrong = subprocess.run([*command[:-1], "nowhere"], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert wrong.returncode == 2
    assert "HOST:PORT" in wrong.stderr
