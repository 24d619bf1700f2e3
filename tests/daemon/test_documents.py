"""The commands in the documents, run: against a real daemon where they ask one, against the files they name elsewhere.

Told apart by their verb. What works is not held here (each verb has tests of its own) but that a reader who types it
gets an answer: no usage error, no traceback, and where it cannot be, one sentence that says why.
"""

from __future__ import annotations

import shlex

import pytest

from agent.cli import exits
from agent.cli.main import main
from tests.daemon.test_doors import Running, running
from tests.test_docs import ROOT, commands

__all__ = ["running"]

READS = {"status", "why", "signals", "leases", "earnings", "ledger", "owner", "packages"}
ASKS = READS | {"pause", "resume", "finish", "consent", "record"}
ELSEWHERE = {
    "bench": "heats this computer, or needs a package",
    "infer": "needs a package and an image, as tests/cli/test_infer.py makes them",
    "keys": "needs a dispatcher that knows the unit: tests/cli/test_keys.py",
    "run": "is what the others run against",
    "verify": "needs what a demonstration leaves: tests/daemon/test_demo.py",
}
"""Verbs whose commands are not run here, and why."""


def documented() -> list[list[str]]:
    found = [shlex.split(command) for command in sorted(set(commands()))]
    return [arguments[1:] for arguments in found if arguments[0].endswith("/driveway")]


def test_every_documented_verb_is_run_or_said_not_to_be() -> None:
    elsewhere = {*ELSEWHERE, "simulate", "doctor", "config", "watch", "update", "bundle", "completion"}
    assert {arguments[0] for arguments in documented()} <= ASKS | elsewhere


def test_what_asks_the_daemon_is_answered(
    running: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(running.folder)
    asked = [arguments for arguments in documented() if arguments[0] in ASKS and "verify" not in arguments]
    assert len(asked) >= 15
    for arguments in asked:
        words = [word for word in arguments if word not in {"--config", "build/demo/agent.toml"}]
        code = main([*words, "--config", str(running.folder / "agent.toml")])
        said = capsys.readouterr()
        assert code not in {exits.USAGE, exits.UNREACHABLE}, (arguments, said.err)
        assert "Traceback" not in said.err
        assert code == exits.FINE or said.err.count("\n") <= 1, (arguments, said.err)
        if words[0] in READS and len(words) == 1:
            assert code in {exits.FINE, exits.DEGRADED}, (arguments, said.err)
            assert said.out.strip(), arguments


@pytest.mark.parametrize("arguments", [one for one in documented() if one[0] == "simulate"], ids=" ".join)
def test_what_plays_a_night_plays_it(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    if not (ROOT / arguments[1]).exists():
        pytest.skip("it is a recording of one's own")
    assert main(arguments) in {exits.FINE, exits.FAILED}
    assert capsys.readouterr().out.count("\n") > 10
