"""The command against daemons of other versions, and against what is no daemon at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.cli.client import UnreachableError, ask, ask_within
from agent.errors import DrivewayError


@contextmanager
def answering(folder: Path, said: bytes) -> Iterator[Path]:
    """Something that says this to whoever asks once."""
    path = folder / "control.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        thread.join(20)


@pytest.mark.parametrize(
    "said",
    [
        b'{"ok": false, "error": "not a request: Invalid enum value \'why\' - at `$.verb`"}\n',
        b'{"ok": false, "error": "not a request: no verb \'why\' is known", "code": "unknown_verb", "later": 1}\n',
    ],
)
def test_a_daemon_that_does_not_know_the_verb(tmp_path: Path, said: bytes) -> None:
    with (
        answering(tmp_path, said) as path,
        pytest.raises(DrivewayError, match="not know `why`; start the installed"),
    ):
        ask(path, "why")


def test_an_answer_of_a_later_version_is_taken(tmp_path: Path) -> None:
    with answering(tmp_path, b'{"ok": true, "data": {"state": "dreaming", "new": [1]}, "seal": "x"}\n') as path:
        assert ask(path, "status") == {"state": "dreaming", "new": [1]}


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[]\n", b"{}\n", b'{"ok": false}\n', b"\xff\xfe\n", b"null\n"]
)
def test_what_is_no_daemon(tmp_path: Path, said: bytes) -> None:
    with answering(tmp_path, said) as path, pytest.raises(UnreachableError, match="is not the daemon"):
        ask(path, "status")


def test_what_hangs_up_without_a_word(tmp_path: Path) -> None:
    with answering(tmp_path, b"") as path, pytest.raises(UnreachableError, match="closed the connection"):
        ask(path, "status")


def test_a_daemon_whose_queue_is_full_is_waited_for_and_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(UnreachableError, match="no daemon answers") as failed:
            ask_within(0.2, path, "status")
    assert not failed.value.absent
