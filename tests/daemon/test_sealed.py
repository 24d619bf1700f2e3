"""`driveway-hil submit --sealed` on a rig: the car that has the lease computes, and nobody else could have read it.

Every image carries a marker in a chunk that its decoder skips. It is looked for on the car's disk, in every message at
the broker, and in what anybody may download.
"""

from __future__ import annotations

import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.fleet.desk import sealed_object, to_grant
from agent.fleet.messages import GrantMessage, JobGrant, decode
from agent.trust import dsse
from agent.trust.sealing import Opener, SealError, SealFault
from agent.trust.sealing_key import SealingKeys
from hil.cli import main as driveway_hil
from hil.dispatcher.__main__ import Ready
from hil.images import drawn_lines
from hil.rig import UNIT, Rig
from tests.daemon.test_privacy import heard_by, opened
from tests.daemon.test_rig import wait
from tests.hil.test_dispatcher_process import Remote

pytestmark = pytest.mark.long

MARKER = b"nobody's but the customer's"
LINES = 16
FILLER_BYTES = 96 * 1024
"""In each image: so that an input is of many sealed chunks, and worth keeping when its download breaks off."""


def marked(png: bytes) -> bytes:
    """The same picture, with the marker and a filler in a private chunk behind its header."""
    body = b"prVt" + MARKER * (FILLER_BYTES // len(MARKER))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:33] + chunk + png[33:]


def files_with_marker(folder: Path) -> list[str]:
    """Names of files below a folder that have the marker in them."""
    return [
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and MARKER in path.read_bytes()
    ]


def grants(messages: list[tuple[str, bytes]]) -> Iterator[JobGrant]:
    """The jobs that were granted, as anybody at the broker reads them."""
    for topic, body in messages:
        if topic.endswith("/grant"):
            job = decode(dsse.parse(body).payload, GrantMessage).job
            if job is not None:
                yield job


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


def plaintext(job: JobGrant, keys: SealingKeys, sealed: bytes) -> bytes:
    """What a unit with these keys makes of it; raises SealError."""
    grant, found = to_grant(job, b""), bytearray()
    assert grant.input_sealed is not None
    what = sealed_object(grant)
    content_key = keys.content_key(grant.input_sealed.wrapped_key, grant.input_sealed.keyid, what)
    opener = Opener(content_key, what, found.extend)
    opener.add(sealed)
    opener.finish()
    return bytes(found)


def test_a_sealed_submission_is_computed_and_read_by_its_car_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "customer"))
    images = tmp_path / "images"
    images.mkdir()
    for number, image in enumerate(drawn_lines(LINES, 3)):
        (images / f"{number:02}.png").write_bytes(marked(image.png))
    answers = tmp_path / "answers.jsonl"
    with Rig(tmp_path / "rig") as rig:
        rig.build_package()
        rig.broker.start()
        rig.start_dispatcher()
        ready = msgspec.json.decode((rig.folder / "dispatcher" / "ready").read_bytes(), type=Ready)
        key = (rig.folder / "dispatcher" / "dispatcher.pub").read_text("ascii")
        tap = Remote("tap", rig._broker_port, ready, key, "dw/v1/#")
        try:
            rig.start_car()
            rig.start_daemon()
            rig.car("driver_leaves")
            order = ["submit", str(images), "--package", "ocr", "--dir", str(rig.folder), "--slice-items", "8"]
            assert driveway_hil([*order, "--price", "0.01", "--sealed", "--wait", "--out", str(answers)]) == 0
            status = wait(rig, "the verdict", lambda status: status["earnings"]["gross"] > 0)
            messages = heard_by(tap)
            (job, *_) = grants(messages)
            assert job.input.bytes > LINES * FILLER_BYTES
            sealed = fetched(job.input.url)
            with pytest.raises(urllib.error.HTTPError):
                fetched(f"{ready.http_url}/objects/{job.input.sha256}")
        finally:
            tap.close()
            rig.broker.kill()
        assert status["outbox"]["pending"] == 0
        said = [msgspec.json.decode(line) for line in answers.read_bytes().splitlines()]
        assert len(said) == LINES
        assert all("text" in str(one) for one in said)
        _check_where_the_marker_is(rig, messages, sealed)
        _check_who_can_open_it(rig, tmp_path, job, sealed)


def _check_where_the_marker_is(rig: Rig, messages: list[tuple[str, bytes]], sealed: bytes) -> None:
    rig.stop("daemon")
    (kept,) = files_with_marker(rig.folder / "dispatcher")
    assert kept.startswith("objects/"), "the dispatcher has the plaintext, so looking finds it"
    assert files_with_marker(rig.folder / "state") == []
    assert [path.name for path in rig.folder.glob("*.log") if MARKER in path.read_bytes()] == []
    assert [topic for topic, body in messages if any(MARKER in one for one in opened(body))] == []
    assert MARKER not in sealed


def _check_who_can_open_it(rig: Rig, folder: Path, job: JobGrant, sealed: bytes) -> None:
    mine = SealingKeys.open(rig.folder / "state", UNIT, 0)
    assert MARKER in plaintext(job, mine, sealed), "so the right key opens what was fetched"
    other = folder / "another car"
    other.mkdir()
    for unit in ("car-0002", UNIT):
        with pytest.raises(SealError) as refused:
            plaintext(job, SealingKeys.open(other, unit, 1), sealed)
        assert refused.value.fault is SealFault.UNKNOWN_KEY
    with pytest.raises(SealError) as refused:
        plaintext(job, SealingKeys("car-0002", (mine.newest,)), sealed)
    assert refused.value.fault is SealFault.NOT_FOR_THIS, "the unit's name is in it, not its key alone"
