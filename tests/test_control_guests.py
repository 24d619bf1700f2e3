"""The control socket and other users: who may do what, and what is said to whom; real sockets, real processes.

What slow, greedy and wild clients can do is in test_control_floods.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import __version__, peers
from agent.control import OWNERS, PROTOCOL, READ_FROM_DISK, RESERVED, ROOTS, VERBS, ControlRequest, needs
from agent.control_server import ControlServer
from agent.errors import DrivewayError
from agent.peers import Peer, Rank, rank_of
from tests.guests import ask_as, asks, echo, needs_root, open_folder, serving, talk, told

STRANGER, OTHER, OWNER_GID, READERS_GID = 54_321, 54_322, 54_400, 54_401


# --- who may do what ----------


@pytest.mark.parametrize(
    ("peer", "rank"),
    [
        (Peer(0, frozenset({0})), Rank.ROOT),
        (Peer(7, frozenset({7})), Rank.OPERATOR),
        (Peer(8, frozenset({8, OWNER_GID})), Rank.OWNER),
        (Peer(8, frozenset({8, 7, 0})), Rank.READER),
        (Peer(65_534, frozenset({65_534})), Rank.READER),
    ],
)
def test_ranks(peer: Peer, rank: Rank) -> None:
    assert rank_of(peer, OWNER_GID, own_uid=7) is rank
    assert rank_of(peer, None, own_uid=7) is not Rank.OWNER


def test_every_verb_has_the_rank_that_its_kind_needs() -> None:
    assert set(VERBS) >= (OWNERS | RESERVED | ROOTS | READ_FROM_DISK)
    assert not READ_FROM_DISK & RESERVED
    ranks = {verb: needs(verb) for verb in VERBS}
    assert {verb for verb, rank in ranks.items() if rank is Rank.OWNER} == OWNERS
    assert {verb for verb, rank in ranks.items() if rank is Rank.ROOT} == ROOTS
    assert {verb for verb, rank in ranks.items() if rank > Rank.READER} == RESERVED


@needs_root
@pytest.mark.parametrize(
    ("uid", "groups", "may"),
    [
        (0, (), Rank.ROOT),
        (STRANGER, (READERS_GID,), Rank.READER),
        (STRANGER, (READERS_GID, OWNER_GID), Rank.OWNER),
    ],
)
def test_each_user_may_what_its_rank_allows_and_no_more(uid: int, groups: tuple[int, ...], may: Rank) -> None:
    async def story() -> None:
        with open_folder() as folder:
            async with serving(folder, owner_gid=OWNER_GID) as server:
                os.chown(folder / "control.sock", -1, READERS_GID)
                hello, *answers = await ask_as(uid, server._path, *asks("hello", *VERBS), groups=groups)
        allowed = {verb for verb, answer in zip(VERBS, answers, strict=True) if answer["ok"]}
        assert allowed == {verb for verb in VERBS if needs(verb) <= may}
        assert hello["data"]["rank"] == may.name.lower()
        assert hello["data"]["verbs"] == {verb: verb in allowed for verb in VERBS}
        refused = [answer for answer in answers if not answer["ok"]]
        assert all(answer["code"] == "refused" and answer["hint"] == "use sudo" for answer in refused)

    told(story)


@needs_root
def test_who_is_not_in_the_group_cannot_even_open_it() -> None:
    async def story() -> None:
        with open_folder() as folder:
            async with serving(folder) as server:
                os.chown(folder / "control.sock", -1, READERS_GID)
                assert await ask_as(STRANGER, server._path, *asks("why")) == [{"os": "PermissionError"}]

    told(story)


@needs_root
def test_the_first_group_of_a_user_counts_like_its_others() -> None:
    async def story() -> None:
        with open_folder() as folder:
            async with serving(folder, owner_gid=OWNER_GID) as server:
                (folder / "control.sock").chmod(0o666)
                (said,) = await ask_as(STRANGER, server._path, *asks("pause"), gid=OWNER_GID)
                assert said["ok"]

    told(story)


def test_a_kernel_that_tells_no_groups_raises_nobodys_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "SO_PEERGROUPS", 9_999)
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert peers.peer_of(one) == Peer(os.getuid(), frozenset({os.getgid()}))


def test_many_groups_are_all_seen() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert peers.peer_of(one).groups == {os.getgid(), *os.getgroups()}


def test_an_owner_group_that_does_not_exist_is_told_and_nobody_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        server = ControlServer(tmp_path / "control.sock", echo, owner_group="no-such-group-here")
        await server.start()
        assert server._owner_gid is None
        assert (await talk(server._path, b'{"verb":"why"}'))[0]["ok"]
        await server.close()

    told(story)
    assert "owner_group_unknown" in "".join(capsys.readouterr())


# --- what is said ----------


class Line:
    """`ControlServer._one`, for a guest that may do everything, and what got through to the daemon."""

    def __init__(self, folder: Path) -> None:
        self.through: list[ControlRequest] = []
        self._server = ControlServer(folder / "control.sock", self._answer)

    async def _answer(self, request: ControlRequest) -> object:
        self.through.append(request)
        return None

    def __call__(self, line: bytes) -> Any:
        answer = asyncio.run(self._server._one(line, Rank.ROOT))
        return json.loads(msgspec.json.encode(answer))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*ControlRequest.__struct_fields__, "colour", ""])
REQUESTS = st.dictionaries(FIELDS, VALUES | st.sampled_from(VERBS), max_size=5)


@given(st.binary(max_size=300) | REQUESTS.map(lambda one: json.dumps(one).encode()))
@settings(derandomize=True, deadline=None, max_examples=400)
def test_any_line_gets_an_answer_and_only_a_request_gets_through(line: bytes) -> None:
    one = Line(Path("/nowhere"))
    said = one(line)
    if one.through:
        assert said["ok"]
        assert json.loads(line)["verb"] == one.through[0].verb
    else:
        assert said["ok"] is (said.get("code") is None)
        assert said["ok"] or said["code"] in {"bad_request", "unknown_verb"}


@pytest.mark.parametrize(
    "line", [b"[" * 4_000, b'{"verb":' * 500, b'"' + b"\\u0000" * 600 + b'"', b"\xff\xfe", b"null", b"9e999"]
)
def test_evil_lines(line: bytes) -> None:
    assert Line(Path("/nowhere"))(line)["code"] == "bad_request"


def test_hello_tells_who_answers_and_what_may_be_asked() -> None:
    said = Line(Path("/nowhere"))(b'{"verb":"hello","of":"a newer command"}')
    assert said["data"]["version"] == __version__
    assert said["data"]["protocol"] == PROTOCOL
    assert said["data"]["verbs"] == dict.fromkeys(VERBS, True)


def test_an_older_daemon_tells_a_newer_command_that_it_does_not_know_the_verb() -> None:
    said = Line(Path("/nowhere"))(b'{"verb":"teleport","where":"home"}')
    assert said["code"] == "unknown_verb"
    assert said["error"] == "not a request: no verb 'teleport' is known"
    assert __version__ in said["hint"]


def test_a_field_that_nobody_knows_is_refused_since_it_means_something() -> None:
    one = Line(Path("/nowhere"))
    assert one(b'{"verb":"pause","unless_cold":true}')["code"] == "bad_request"
    assert one.through == []


def test_what_a_bug_says_stays_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def buggy(_request: ControlRequest) -> object:
        raise RuntimeError("the secret is 4711")

    async def story() -> None:
        async with serving(tmp_path, buggy) as server:
            (said,) = await talk(server._path, b'{"verb":"why"}')
            assert said == {
                "ok": False,
                "code": "failed",
                "error": "the daemon failed to answer: RuntimeError",
                "hint": "its log says more (control_failed)",
            }

    told(story)
    assert "control_failed" in "".join(capsys.readouterr())


def test_an_error_of_ours_is_told_whole(tmp_path: Path) -> None:
    async def refuses(_request: ControlRequest) -> object:
        raise DrivewayError("the ledger is shut", hint="open it")

    async def story() -> None:
        async with serving(tmp_path, refuses) as server:
            (said,) = await talk(server._path, b'{"verb":"why"}')
            assert said == {"ok": False, "code": "failed", "error": "the ledger is shut", "hint": "open it"}

    told(story)
