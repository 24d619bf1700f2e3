"""What a daemon recorded replays to the same states and the same effects, from wherever the recording still reaches."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent import redaction
from agent.cli.main import main
from agent.core.effects import EffectType, Report, SettleHandIn
from agent.core.events import EventType, GrantSeen, LeaseOpened, SliceStored, SourceChanged, Tick, VerdictSeen
from agent.core.lease import Pending
from agent.core.machine import step
from agent.core.model import HandInKind, SliceOutcome, Verdict
from agent.core.state import State
from agent.errors import ConfigError
from agent.recorder import FILES_MAX, SUFFIX, Recorder, Taken
from agent.redaction import Redaction
from agent.simulate import recording
from agent.simulate.recording import Line
from hil.sim.world import build
from tests.core.world import Shell, grant

HOURS = 8


class Night:
    """Some hours of a simulated car with all its faults: states, events and effects, step by step."""

    def __init__(self, number: int) -> None:
        car = build(7, number, 1)
        car.run(car.traits.start_ms + HOURS * 3_600_000)
        self.steps: list[tuple[State, EventType, State, tuple[EffectType, ...]]] = []
        state = car.witness.header.begin()
        for line in car.witness.lines:
            after, effects = step(state, line.event)
            self.steps.append((state, line.event, after, effects))
            state = after
        self.last = state

    def recorded(self, recorder: Recorder) -> Recorder:
        for before, event, after, effects in self.steps:
            recorder.saw(before, event, after, effects)
        return recorder


@pytest.fixture(scope="module", params=[0, 2, 3, 5])
def night(request: pytest.FixtureRequest) -> Night:
    return Night(request.param)


def plain(state: State) -> State:
    return msgspec.structs.replace(state, looked_at=None)


def replayed(recorder: Recorder, folder: Path) -> tuple[recording.Recording, recording.Outcome]:
    read = recording.read(written(recorder, folder))
    return read, recording.replay(read)


def written(recorder: Recorder, folder: Path, wall_ms: int = 1_000) -> Path:
    """On a disk however full."""
    return recorder.taken().write(folder, wall_ms, reserve_bytes=0).path


def test_a_whole_recording_replays_to_the_same(night: Night, tmp_path: Path) -> None:
    read, outcome = replayed(night.recorded(Recorder()), tmp_path)
    assert len(read.lines) == len(night.steps) > 50
    assert outcome.differs == ()
    assert plain(outcome.state) == plain(night.last)


def test_so_does_what_is_left_of_one_whose_beginning_was_dropped(night: Night, tmp_path: Path) -> None:
    recorder = night.recorded(Recorder(max_bytes=12_000, segment_bytes=2_000))
    read, outcome = replayed(recorder, tmp_path)
    assert 0 < len(read.lines) < len(night.steps)
    assert [line.event for line in read.lines] == [one[1] for one in night.steps[-len(read.lines) :]]
    assert outcome.differs == ()
    assert plain(outcome.state) == plain(night.last)


def test_it_is_bounded_whatever_is_recorded(night: Night) -> None:
    recorder, most = Recorder(max_bytes=60_000, segment_bytes=5_000), 0
    for _ in range(5):
        night.recorded(recorder)
        most = max(most, recorder.size)
    assert most < 60_000 + 5_000 + 20_000  # and the segment that is open, with its state


def test_a_version_that_decides_otherwise_is_told_from_which_line_on(night: Night, tmp_path: Path) -> None:
    read, _ = replayed(night.recorded(Recorder()), tmp_path)
    at = next(number for number, line in enumerate(read.lines) if line.effects)
    bent = (*read.lines[:at], Line(read.lines[at].event, effects=(Report(name="other", fields={}),)))
    assert recording.replay(msgspec.structs.replace(read, lines=bent)).differs == (at + 2,)


def test_a_state_that_came_from_elsewhere_begins_it_anew(tmp_path: Path) -> None:
    recorder = Recorder()
    one = build(7, 1, 1).witness.state
    other = msgspec.structs.replace(one, connected=True)
    for before in (one, other):
        tick = Tick(at_ms=before.now_ms + 1)
        after, effects = step(before, tick)
        recorder.saw(before, tick, after, effects)
    read, outcome = replayed(recorder, tmp_path)
    assert len(read.lines) == 1
    assert outcome.state.connected


def test_old_recordings_make_room(tmp_path: Path) -> None:
    recorder = Recorder()
    state = build(7, 1, 1).witness.state
    recorder.saw(state, Tick(at_ms=state.now_ms), state, ())
    (tmp_path / f"{0:013d}.jsonl").write_text("as an earlier version wrote them")
    for wall_ms in range(1, FILES_MAX + 3):
        written(recorder, tmp_path, wall_ms)
    assert len(list(tmp_path.iterdir())) == FILES_MAX
    assert not (tmp_path / f"{0:013d}.jsonl").exists()
    assert not (tmp_path / f"{1:013d}{SUFFIX}").exists()
    assert written(recorder, tmp_path, 99).stat().st_mode & 0o077 == 0


# --- files --------------------------------------------------------------------------------------------------------


def test_it_is_written_whole_or_not_at_all_and_never_into_the_reserve(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    taken = night.recorded(Recorder()).taken()
    disk = os.statvfs(tmp_path)
    with pytest.raises(OSError, match="the disk is nearly full"):
        taken.write(tmp_path, 1, reserve_bytes=2 * disk.f_blocks * disk.f_frsize)
    with monkeypatch.context() as patch:
        patch.setattr(Taken, "_write_to", fail)
        with pytest.raises(OSError, match="Input/output error"):
            taken.write(tmp_path, 1, reserve_bytes=0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "unfinished").write_text("left by a power cut")
    done = taken.write(tmp_path, 1, reserve_bytes=0)
    assert list(tmp_path.iterdir()) == [done.path]
    assert done.size_bytes == done.path.stat().st_size < 2 * taken.size


def test_a_compressed_recording_that_was_cut_off_is_named(night: Night, tmp_path: Path) -> None:
    path = written(night.recorded(Recorder()), tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="is damaged"):
        recording.read(path)


def test_driveway_simulate_plays_it(night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(night.recorded(Recorder()), tmp_path)
    assert main(["simulate", str(path), "--json"]) in {0, 1}  # a simulated night may break a promise by design
    assert json.loads(capsys.readouterr().out)["kind"] == "recording"


# --- it never raises ----------------------------------------------------------------------------------------------


def test_what_cannot_be_recorded_ends_the_recording_and_is_told_once(night: Night, tmp_path: Path) -> None:
    recorder = night.recorded(Recorder())
    bad = SourceChanged(at_ms=night.last.now_ms, source="car", alive=False, detail="read /x/\udcff")
    with capture_logs() as told:
        for _ in range(3):
            recorder.saw(night.last, bad, night.last, ())
    assert [one["event"] for one in told] == ["recording_dropped"]
    assert recorder.taken().segments == ()
    tick = Tick(at_ms=night.last.now_ms)
    after, effects = step(night.last, tick)
    recorder.saw(night.last, tick, after, effects)
    read, outcome = replayed(recorder, tmp_path)
    assert (len(read.lines), outcome.differs) == (1, ()), "and begins anew"


# --- it holds no secret -------------------------------------------------------------------------------------------

SECRETS = ("upload-token-of-the-grant", "token-of-the-renewal", "signature-in-a-query", "user-and-password", "enclosed")


def with_secrets() -> Iterator[tuple[State, EventType, State, tuple[EffectType, ...]]]:
    """Tokens and addresses in events, in the state and in effects, as a fleet that means it would send them."""
    one = msgspec.structs.replace(
        grant(1),
        input_url=f'https://{SECRETS[3]}@store.example/objects/1?sig={SECRETS[2]}&a="#x',
        upload_url="https://store.example/uploads",
        upload_token=SECRETS[0],
    )
    shell = Shell()
    shell.open_the_gate()
    asking = shell.state.asking
    assert asking is not None
    stored = SliceOutcome(0, 4, 0, "c" * 64, "d" * 64, 100)
    now_ms, key = shell.now_ms, one.key
    fresher = msgspec.structs.replace(one, upload_token=SECRETS[1])
    verdict = VerdictSeen(
        at_ms=now_ms,
        key=key,
        statement_sha256="e" * 64,
        verdict=Verdict.SETTLED,
        reason="",
        paid_micro=1,
        retry_ms=0,
        envelope=f'{{"next":{{"upload":{{"token":"{SECRETS[4]}"}}}}}}'.encode(),
    )
    before = shell.state
    events: tuple[EventType, ...] = (
        GrantSeen(at_ms=now_ms, rid=asking.rid, grant=one, retry_ms=0),
        LeaseOpened(at_ms=now_ms, key=key),
        GrantSeen(at_ms=now_ms, rid="renewal", grant=fresher, retry_ms=0),
        SliceStored(at_ms=now_ms, key=key, outcome=stored, output_bytes=9_000),
        verdict,
    )
    for event in events:
        after, effects = step(before, event)
        yield before, event, after, effects
        before = after
    pending = Pending(key, HandInKind.RESULT, "e" * 64, now_ms, missing=(0,), upload_token=SECRETS[0])
    before = msgspec.structs.replace(before, lease=None, outbox=(pending,))
    later: tuple[EventType, ...] = (Tick(at_ms=now_ms + 1), verdict)
    for event in later:
        after, effects = step(before, event)
        yield before, event, after, effects
        before = after


def test_tokens_and_secrets_of_addresses_are_not_in_it_and_it_replays_all_the_same(tmp_path: Path) -> None:
    steps = list(with_secrets())
    for number, part in enumerate((steps[:-2], steps[-2:])):  # a state from elsewhere begins it anew
        recorder = Recorder()
        for one in part:
            recorder.saw(*one)
        path = written(recorder, tmp_path, number)
        text = gzip.decompress(path.read_bytes()).decode()
        bare = text + "".join(base64.b64decode(found).decode() for found in re.findall(r'"envelope":"([^"]+)"', text))
        assert [secret for secret in SECRETS if secret in bare] == []
        read = recording.read(path)
        assert len(read.lines) == len(part)
        assert recording.replay(read).differs == ()
    settle = [effect for line in read.lines for effect in line.effects or () if isinstance(effect, SettleHandIn)]
    (heard,) = (line.event for line in read.lines if isinstance(line.event, VerdictSeen))
    assert [one.envelope for one in settle] == [heard.envelope], "the verdict that came is the one that is kept"
    assert not heard.envelope.startswith(b"{")


def test_the_same_secret_is_the_same_placeholder_and_another_is_another() -> None:
    redaction = Redaction()
    for member in ("token", "upload_token", "url", "input_url", "upload_url", "envelope"):
        value = "https://u:p@h/a?b=c" if "url" in member else base64.b64encode(b"secret").decode()
        texts = [redaction.of(msgspec.json.encode({"x": {member: value + more}})) for more in ("", "", "=")]
        assert texts[0] == texts[1] != texts[2]
        assert value.encode() not in texts[0]
        assert texts[0] != Redaction().of(msgspec.json.encode({"x": {member: value}})), "under a key of its own"
        assert msgspec.json.decode(redaction.of(msgspec.json.encode({member: ""}))) == {member: ""}
    shown = msgspec.json.decode(redaction.of(msgspec.json.encode({"input_url": "https://u:p@h:1/a/b?c=d#e"})))
    assert re.fullmatch(r"https://redacted-\w{12}@h:1/a/b\?redacted-\w{12}", shown["input_url"])
    plain = {"input_url": "http://127.0.0.1:80/objects/1", "detail": '"token":"a word in a sentence"'}
    assert msgspec.json.decode(redaction.of(msgspec.json.encode(plain))) == plain


@given(
    st.recursive(
        st.text() | st.integers(0, 9),
        lambda inner: st.dictionaries(st.sampled_from(["token", "url", "envelope", "x"]), inner),
    )
)
def test_whatever_is_redacted_is_json_of_the_same_shape(value: Any) -> None:
    def shape(one: Any) -> Any:
        return {name: shape(inner) for name, inner in one.items()} if isinstance(one, dict) else type(one)

    assert shape(msgspec.json.decode(Redaction().of(msgspec.json.encode(value)))) == shape(value)


def test_every_member_that_may_hold_a_secret_is_known() -> None:
    """A new token or address in what the core is told, keeps or asks for has to be redacted too, or named here."""
    seen: set[str] = set()

    def look(kind: Any) -> None:
        for one in typing.get_args(kind):
            look(one)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__name__ not in done:
            done.add(kind.__name__)
            for field in msgspec.structs.fields(kind):
                seen.add(field.encode_name)
                look(field.type)

    done: set[str] = set()
    for kind in (State, EventType, EffectType):
        look(kind)
    suspicious = re.compile("token|url|uri|secret|password|envelope|bearer|credential|body")
    found = {name for name in seen if suspicious.search(name)}
    assert found == {*redaction.TOKENS, *redaction.ADDRESSES, *redaction.ENVELOPES}
