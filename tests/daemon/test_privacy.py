"""A night on a rig whose car and disk are full of what nobody is to know: none of it reaches broker or dispatcher.

Every message is heard at the broker and opened, inputs are sealed, and all that the dispatcher keeps is read through.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import can
import msgspec
import pytest

from hil.dispatcher.__main__ import Ready
from hil.dispatcher.view import View
from hil.images import drawn_lines
from hil.rig import UNIT, Rig
from tests.daemon.test_rig import all_done, wait
from tests.hil.test_dispatcher_process import Remote
from tests.test_privacy import suspicious

pytestmark = pytest.mark.long

VIN = b"5YJ3E1EA7KF317000"
OWNER = "Erika Mustermann"
NETWORK = "FRITZ!Box Mustermann"
LATITUDE, LONGITUDE, ODOMETER_KM = 52.5163, 13.3777, 48_213
SECRETS = (VIN, OWNER.encode(), b"Mustermann", b"FRITZ!Box", b"52.516", b"13.377", b"48213")


def drive_secrets_onto(rig: Rig) -> None:
    """What other computers of a car say on its buses: in frames that no profile reads, and in text."""
    for port in rig._bus_ports:
        with can.Bus(interface="udp_multicast", channel=rig._group, port=port, hop_limit=0) as bus:
            for number, data in enumerate(
                (VIN[:8], VIN[8:16], VIN[16:], struct.pack("<ff", LATITUDE, LONGITUDE), b"%d" % ODOMETER_KM)
            ):
                bus.send(can.Message(arbitration_id=0x405 + number, data=data, is_extended_id=False))


def opened(body: bytes) -> list[bytes]:
    """A message and everything that is in it in base64, however deep."""
    found, waiting = [body], [body]
    while waiting:
        try:
            value = msgspec.json.decode(waiting.pop())
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        for text in _strings(value):
            try:
                inner = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                continue
            found.append(inner)
            waiting.append(inner)
    return found


def _strings(value: Any) -> list[str]:
    match value:
        case str():
            return [value]
        case dict():
            return [text for one in value.values() for text in _strings(one)]
        case list():
            return [text for one in value for text in _strings(one)]
    return []


def heard_by(tap: Remote) -> list[tuple[str, bytes]]:
    found = []
    while not tap._heard.empty():
        found.append(tap.hear())
    return found


@pytest.fixture
def near() -> Iterator[Path]:
    """A folder with a short path: those of sockets may not be longer than 107 bytes."""
    with TemporaryDirectory(prefix="dw") as folder:
        yield Path(folder)


def test_nothing_of_the_car_its_owner_or_its_place_leaves_it(near: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVEWAY_OWNER", OWNER)
    folder = near / OWNER / "rig"
    with Rig(folder, dispatcher_options=("--seal-inputs",)) as rig:
        package = rig.build_package()
        (rig.folder / "packages" / NETWORK).mkdir()
        items = [image.png for image in drawn_lines(24, 5)]
        rig.submit(package, items, slice_items=8, price_micro_per_item=10)
        rig.broker.start()
        rig.start_dispatcher()
        ready = msgspec.json.decode((rig.folder / "dispatcher" / "ready").read_bytes(), type=Ready)
        key = (rig.folder / "dispatcher" / "dispatcher.pub").read_text("ascii")
        tap = Remote("tap", rig._broker_port, ready, key, "dw/v1/#")
        try:
            rig.start_car()
            rig.start_daemon()
            drive_secrets_onto(rig)
            rig.car("driver_leaves")
            with View(rig.folder / "dispatcher") as view:
                wait(rig, "the job to be done", lambda status: all_done(view) and status["outbox"]["pending"] == 0)
            rig.stop("dispatcher")
            rig.submit(package, items[:8], slice_items=8, price_micro_per_item=10)
            for path in (rig.folder / "dispatcher" / "objects").iterdir():
                if path.is_file():
                    path.unlink()  # so that the lease comes to nothing, and the car says why
            rig.start_dispatcher()
            wait(rig, "a lease to be given back", lambda _status: _given_back(rig))
            drive_secrets_onto(rig)
            messages = heard_by(tap)
        finally:
            tap.close()
            rig.broker.kill()
        _check_messages(messages, items)
        rig.stop("dispatcher")
        kept = [path for path in (rig.folder / "dispatcher").rglob("*") if path.is_file()]
        for path in kept:
            body = path.read_bytes()
            assert [secret for secret in SECRETS if secret in body] == [], path.name


def _given_back(rig: Rig) -> bool:
    return any(one["lease"]["kind"] == "yield" for one in rig.ask("leases"))


def _check_messages(messages: list[tuple[str, bytes]], items: list[bytes]) -> None:
    verbs = {topic.rpartition("/")[2] for topic, _ in messages}
    assert {"status", "request", "grant", "result", "verdict", "sealing", "yield"} <= verbs
    bodies = [(topic, one) for topic, body in messages for one in opened(body)]
    assert any(b"acme" in one for _, one in bodies), "envelopes were opened"
    sealed = [one for topic, one in bodies if topic.endswith("/grant") and b"wrapped_key" in one]
    assert sealed
    for topic, one in bodies:
        assert [secret for secret in SECRETS if secret in one] == [], topic
        assert items[0][:64] not in one, "a customer's input is nobody's to read on the way"
        if f"/{UNIT}/" in topic and topic.startswith("dw/v1/u/"):
            assert suspicious(one, ignore=(b"//127.0.0.1:",)) == [], topic  # the dispatcher's own
