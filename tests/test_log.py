"""What is logged: no secret by any way in or out, no flood in silence, and what the process is about in every event."""

from __future__ import annotations

import ast
import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from agent import log
from agent.core.model import JobKey, Readiness
from agent.log_secrets import DEPTH, ITEMS, SECRET_FIELDS, Safe
from agent.log_storms import BURST, NAMES, TELL_AFTER_S, Storms
from tests.test_log_catalogue import ELSEWHERE, ROOT, calls, is_log_call

KEY = ec.generate_private_key(ec.SECP256R1())
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
SECRET = "S3cr3tS3cr3tS3cr3t"
PLANTED: dict[str, object] = {
    "bytes": SECRET.encode(),
    "bytearray": bytearray(SECRET.encode()),
    "memoryview": memoryview(SECRET.encode()),
    "a key": KEY,
    "a key as PEM": PEM,
    "half a PEM": PEM[:120],
    "a bearer": f"got 401 for Authorization: Bearer {SECRET}",
    "basic": f"header 'Authorization: Basic {SECRET}=='",
    "a token in JSON": json.dumps({"token": SECRET, "url": "x"}),
    "a token in a repr": repr({"upload_token": SECRET}),
    "a password": f"login failed (user=a, password={SECRET})",
    "an address": f"cannot fetch https://b.example/i/1?X-Signature={SECRET}&e=1",
    "a user": f"mqtts://unit:{SECRET}@b.example:8883 refused",
    "an error with bytes": ValueError(SECRET.encode()),
    "bytes as text": f"cannot read {SECRET.encode()!r}",
    "known": "the code KNOWN-ENROL-CODE was refused",
    "a VIN": "car 5YJ3E1EA7KF317000 is parked",
    "a path with a token": Path(f"/run/x?token={SECRET}"),
    "inside a list": [1, [SECRET.encode(), f"token: {SECRET}"]],
    "inside a mapping": {"a": {"password": SECRET, "b": SECRET.encode()}},
    "a struct": msgspec.convert({"token": SECRET}, msgspec.defstruct("Grant", [("token", str)])),
    "an exception of ours": RuntimeError(f"secret = '{SECRET}'"),
}
HIDDEN = (SECRET, "KNOWN-ENROL-CODE", "5YJ3E1EA7KF317000", PEM.splitlines()[1][:40])


def shown(text: str) -> list[str]:
    """Which of the planted secrets are in a text, in any form that a log may give them."""
    return [one for one in HIDDEN if one in text or one in text.replace("\\n", "\n").replace("\\\\", "\\")]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    log.about(None)
    log._SAFE._known.clear()


# --- secrets ----------


def fields_of_every_call() -> list[Any]:
    """(file, line, level, fields) of each place in the source that logs."""
    found = []
    for path in sorted((ROOT / "agent").rglob("*.py")):
        file = str(path.relative_to(ROOT))
        for _, call in calls(ast.parse(path.read_text("utf-8"))):
            if is_log_call(call) and not file.startswith(ELSEWHERE):
                assert isinstance(call.func, ast.Attribute)
                names = tuple(keyword.arg or "fields" for keyword in call.keywords)
                found.append(pytest.param(call.func.attr, names, id=f"{file}:{call.lineno}"))
    return found


@pytest.mark.parametrize(("level", "names"), fields_of_every_call())
def test_no_call_in_the_source_can_log_a_secret(
    level: str, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure()
    log.keep_secret("KNOWN-ENROL-CODE")
    for number, value in enumerate(PLANTED.values()):
        getattr(log.logger(), level)(f"event_{number}", **dict.fromkeys(names, value))
    said = capsys.readouterr().err
    assert said.count('"event_') >= len(PLANTED)
    assert shown(said) == []


@pytest.mark.parametrize(
    "name", ["token", "upload_token", "PASSWORD", "pin", "private", "enrol_code", "envelope", "vin"]
)
def test_a_field_that_is_called_a_secret_is_one(name: str) -> None:
    assert Safe()(None, "", {name: "harmless"}) == {name: f"<refused: {name}>"}


@pytest.mark.parametrize("name", ["keyid", "key_epoch", "pinned", "tokens", "package_sha256", "event", "lease", "file"])
def test_a_field_that_is_not_called_one_is_none(name: str) -> None:
    assert Safe()(None, "", {name: "harmless"}) == {name: "harmless"}


@pytest.mark.parametrize("value", PLANTED.values(), ids=PLANTED)
def test_every_way_in_and_every_way_out(value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field, bound, in the context, in the event, in an exception; as JSON, on a terminal, to the journal."""
    for told in (to_json, to_terminal, to_journal):
        text = told(lambda: say_everywhere(value), tmp_path, monkeypatch)
        assert text.count("event_here") >= 5, told.__name__
        assert shown(text) == [], told.__name__


def say_everywhere(value: object) -> None:
    log.keep_secret("KNOWN-ENROL-CODE")
    log.logger().info("event_here", detail=value)
    log.logger().bind(bound=value).info("event_here")
    with structlog.contextvars.bound_contextvars(context=value):
        log.logger().info("event_here")
    log.logger().info(f"event_here {value}")
    log.logger().info("event_here %s", value)
    log.about(lambda: {"about": str(value)})
    log.logger().info("event_here")
    log.about(None)
    try:
        fail(value)
    except RuntimeError:
        log.logger().error("event_here", exc_info=True)
        log.logger().exception("event_here")
    log.hear_libraries()
    try:
        logging.getLogger("some.library").warning("event_here: %s", value, exc_info=RuntimeError(value))
    finally:
        root = logging.getLogger()
        for handler in [one for one in root.handlers if isinstance(one, log._FromLibraries)]:
            root.removeHandler(handler)


def fail(value: object) -> None:
    raise RuntimeError(value)


def to_json(say: Callable[[], None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return written(say, folder, monkeypatch, is_terminal=False)


def to_terminal(say: Callable[[], None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return written(say, folder, monkeypatch, is_terminal=True)


def written(say: Callable[[], None], folder: Path, monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> str:
    path = folder / "log"
    with path.open("w", encoding="utf-8") as file, monkeypatch.context() as patch:
        file.isatty = lambda: is_terminal  # type: ignore[method-assign]
        patch.setattr(sys, "stderr", file)
        log.configure()
        say()
    return path.read_text("utf-8")


def to_journal(say: Callable[[], None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    address = str(folder / "journal.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal, (folder / "stream").open("w") as stream:
        journal.bind(address)
        journal.setblocking(False)
        found = os.fstat(stream.fileno())
        with monkeypatch.context() as patch:
            patch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
            patch.setattr(os, "fstat", lambda _descriptor: found)
            log.configure(journal=address)
        say()
        told = b""
        while True:
            try:
                told += journal.recv(1 << 20)
            except BlockingIOError:
                break
        structlog.get_config()["logger_factory"]().close()
    Path(address).unlink()
    return told.decode("utf-8", "replace")


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=12, max_size=40), st.text(max_size=30))
def test_what_is_known_to_be_secret_is_nowhere(secret: str, around: str) -> None:
    safe = Safe()
    safe.keep_secret(secret)
    event = {"event": f"{around}{secret}{around}", around: [secret, {secret: secret}]}
    assert secret not in json.dumps(safe(None, "", event))


SCALARS = st.none() | st.integers() | st.text() | st.binary() | st.floats()
ANY = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(ANY)
def test_any_value_can_be_written_as_json(value: object) -> None:
    json.dumps(Safe()(None, "", {"event": "x", "value": value}))


def test_what_is_no_secret_is_left_alone() -> None:
    event = {
        "event": "catalogue_believed",
        "keyid": "ab" * 32,
        "file": "/var/lib/driveway/driveway.db",
        "url": "https://dispatch.example/objects/17",
        "lease": "job-3f2a/1",
        "error": "the disk refused: disk I/O error (key 3 of table kept)",
        "count": 3,
        "share": 0.5,
        "yes": True,
        "state": Readiness.READY,
        "cores": [1, 2],
    }
    assert Safe()(None, "", dict(event)) == event | {"state": "ready"}


def test_other_objects_are_refused_by_their_type_and_large_ones_are_cut() -> None:
    said = Safe()(
        None, "", {"event": "x", "key": JobKey("job", 1), "many": list(range(10_000)), "deep": [[[[[["x"]]]]]]}
    )
    assert said["key"] == "<refused: JobKey>"
    assert len(said["many"]) == ITEMS
    assert str(said["deep"]).count("[") == DEPTH
    assert "<refused: list>" in str(said["deep"])


def test_no_event_of_the_source_has_a_field_that_would_be_refused_by_its_name() -> None:
    """Such a field says nothing, so nobody should find out in the field."""
    for site in fields_of_every_call():
        _, names = site.values
        assert [name for name in names if SECRET_FIELDS.search(name)] == [], site.id


# --- storms ----------


def test_a_storm_is_counted_and_told() -> None:
    storms = Storms()
    admitted = [storms.admit("x", 100.0) for _ in range(1_000)]
    assert admitted[:BURST] == [0] * BURST
    assert set(admitted[BURST:]) == {None}
    assert storms.held_back == 1_000 - BURST
    assert storms.admit("y", 100.0) == 0, "another event is not held back"
    assert storms.admit("x", 110.0) == 1_000 - BURST, "the next one tells how many there were"
    assert storms.is_quiet


def test_a_storm_that_nothing_follows_is_told_when_it_is_over_or_the_process_ends() -> None:
    storms = Storms(burst=1)
    for _ in range(5):
        storms.admit("x", 50.0)
    assert storms.over(50.0 + TELL_AFTER_S - 1) == []
    assert storms.over(50.0 + TELL_AFTER_S) == [("x", 4)]
    assert storms.over(500.0) == []
    for _ in range(3):
        storms.admit("x", 600.0)
    assert storms.over(600.0, ending=True) == [("x", 2)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 20), st.booleans()), max_size=200))
def test_no_event_is_lost_in_silence(steps: list[tuple[str, float, bool]]) -> None:
    storms, now_s, written, told = Storms(burst=2), 0.0, 0, 0
    for name, later_s, look in steps:
        now_s += later_s
        held = storms.admit(name, now_s)
        written, told = written + (held is not None), told + (held or 0)
        told += sum(count for _, count in storms.over(now_s)) if look else 0
    told += sum(count for _, count in storms.over(now_s, ending=True))
    assert written + told == len(steps)
    assert storms.held_back == told


def test_names_without_end_share_one_pace() -> None:
    storms = Storms()
    admitted = sum(storms.admit(f"name {number}", 1.0) is not None for number in range(10 * NAMES))
    assert admitted <= NAMES + BURST
    assert len(storms._names) <= NAMES + 1


def test_the_log_holds_back_tells_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    before = log.events_by_level().get("warning", 0)
    for _ in range(BURST + 500):
        log.logger().warning("bus_failed")
    log.logger().info("other")
    assert log.events_held_back() == 500
    assert log.events_by_level()["warning"] - before == BURST + 500
    log.tell_storms()
    assert "events_held_back" not in capsys.readouterr().err.replace("bus_failed", ""), "it is not over yet"
    log.tell_storms(ending=True)
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["event"], said["of"], said["count"]) == ("events_held_back", "bus_failed", 500)


# --- what it is about ----------


def test_every_event_says_which_car_and_which_lease_unless_it_says_so_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure()
    log.about(lambda: {"unit": "car-1", "lease": "job/1"})
    log.logger().info("gate_changed")
    log.logger().info("lease_closed", lease="job/0")
    log.about(None)
    log.logger().info("stopped")
    first, second, third = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["unit"], first["lease"]) == ("car-1", "job/1")
    assert (second["unit"], second["lease"]) == ("car-1", "job/0")
    assert "unit" not in third


def test_the_journal_can_be_asked_for_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def say() -> None:
        log.about(lambda: {"unit": "car-1", "lease": "job/1"})
        log.logger().info("gate_changed", detail="two\nlines")

    told = to_journal(say, tmp_path, monkeypatch)
    assert "\nDRIVEWAY_LEASE=job/1\n" in told
    assert "\nDRIVEWAY_UNIT=car-1\n" in told
    assert "DRIVEWAY_DETAIL\n" + struct.pack("<Q", 9).decode() + "two\nlines\n" in told


def test_libraries_are_heard_once(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    log.hear_libraries()
    log.hear_libraries()
    try:
        logging.getLogger("asyncio").error("Task exception was never retrieved")
        logging.getLogger("paho").info("chatter")
    finally:
        root = logging.getLogger()
        for handler in [one for one in root.handlers if isinstance(one, log._FromLibraries)]:
            root.removeHandler(handler)
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["event"], said["level"], said["library"]) == ("library_warns", "error", "asyncio")
