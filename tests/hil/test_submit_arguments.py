"""What cannot be is said before anything is sent, collected or waited for; and old records give way to new ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hil import cli
from hil.submit import record
from hil.submit.endpoint import Endpoint
from hil.submit.record import Heading, Writer

WHERE = ["--url", "http://127.0.0.1:1", "--token-file", "/nowhere/token"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--collect", "sub1", "--url", "http://127.0.0.1:1"], "go together"),
        (["--collect", "sub1", "--token-file", "x"], "go together"),
        (["--collect", "sub1", "--url", "http://[", "--token-file", "x"], "is no URL"),
        (["--collect", "sub1", "--url", "file:///etc/passwd", "--token-file", "x"], "is no URL"),
        (["--collect", "sub1", "--url", "http://h:99999", "--token-file", "x"], "is no URL"),
        (["--collect", "sub1", "--dir", "rig", *WHERE], "give one of them"),
        (["in", "--package", "p", "--dir", "rig", *WHERE], "give one of them"),
        (["in", "--package", "p", "--dir", "rig", "--token-file", "x"], "give one of them"),
        (["--collect", "sub1", "--price", "0.5"], "--price cannot be changed"),
        (["--collect", "sub1", "--ttl", "5m"], "--ttl cannot be changed"),
        (["--collect", "sub1", "--class", "x"], "--class cannot be changed"),
        (["--collect", "sub1", "--shape", "x=1"], "--shape cannot be changed"),
    ],
)
def test_what_does_not_go_together(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["submit", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "."], "it is a folder"),
        (["--json", "."], "it is a folder"),
        (["--out", "/nowhere/x"], "there is no folder /nowhere"),
        (["--out", "x", "--json", "x"], "cannot go to one file"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_first(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["submit", "in", "--package", "p", "--wait", *arguments, *WHERE]) == 1
    assert said in capsys.readouterr().err


def write(folder: Path, number: int) -> Path:
    heading = Heading(
        submission=f"sub{number:04d}",
        endpoint=Endpoint(folder="rig"),
        package="p",
        package_sha256="ab" * 32,
        files=1,
        price_micro_per_item=0,
        currency="USD",
    )
    with Writer(folder, heading):
        pass
    path = folder / f"sub{number:04d}.jsonl"
    os.utime(path, (number, number))
    return path


@pytest.mark.parametrize(("limit", "most"), [("MOST_KEPT", 3), ("MOST_BYTES_KEPT", 560)])
def test_old_records_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int) -> None:
    monkeypatch.setattr(record, limit, most)
    paths = [write(tmp_path, number) for number in range(6)]
    assert [path.exists() for path in paths] == [False, False, False, True, True, True]
