"""The command line without a daemon: help, mistakes and exit codes. With one: see tests/daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cli import exits
from agent.cli.main import main
from agent.cli.text import table, value

VERBS = (
    *("run", "status", "why", "signals", "leases", "earnings", "ledger"),
    *("pause", "resume", "finish", "consent", "owner", "infer", "bench", "packages", "verify", "doctor"),
)


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == exits.FINE
    said = capsys.readouterr().out
    assert all(verb in said for verb in VERBS)
    assert "exit codes" in said


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == exits.FINE
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["explode"], ["status", "--colour"], ["infer"], ["verify", "x.json"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == exits.USAGE


@pytest.mark.parametrize(
    ("verb", "option", "wrong"),
    [
        *(
            (verb, "--limit", wrong)
            for verb in ("leases", "earnings", "ledger")
            for wrong in ("0", "-5", "5000", "1.5")
        ),
        *((verb, "--threads", wrong) for verb in ("bench", "infer") for wrong in ("0", "-3", "65", "two")),
        *(("bench", "--rounds", wrong) for wrong in ("0", "-1", "")),
        *(("bench", "--duration", wrong) for wrong in ("9", "241", "abc", "nan", "1e2")),
    ],
)
def test_a_number_out_of_range_is_exit_code_2_and_says_what_is_in_it(
    verb: str, option: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, f"{option}={wrong}"])
    assert ended.value.code == exits.USAGE
    said = capsys.readouterr().err
    assert f"argument {option}: " in said
    assert "is not between" in said or "is no whole number" in said


def test_no_daemon_is_exit_code_3_and_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--socket", str(tmp_path / "control.sock")]) == exits.UNREACHABLE
    said = capsys.readouterr().err
    assert said.startswith("driveway: no daemon answers on")
    assert "is `driveway run` running?" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read the configuration"),
        ("control_socket = ", "is not TOML"),
        ('state_dir = "x"', "names no control_socket"),
    ],
)
def test_a_configuration_that_cannot_be_used_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    path = tmp_path / "agent.toml"
    if text is not None:
        path.write_text(text)
    assert main(["status", "--config", str(path)]) == exits.FAILED
    assert said in capsys.readouterr().err


def test_run_names_the_key_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("[policy]\nparkt_for_s = 3\n")
    assert main(["run", "--config", str(path)]) == exits.FAILED
    assert "unknown key 'policy.parkt_for_s'; did you mean policy.parked_for_s?" in capsys.readouterr().err


def test_infer_names_the_package_and_the_input_that_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    laptop = ["--config", str(tmp_path / "none.toml")]
    assert main(["infer", str(tmp_path), str(tmp_path / "line.png"), *laptop]) == exits.FAILED
    assert "cannot read the input" in capsys.readouterr().err
    (tmp_path / "line.png").write_bytes(b"x")
    assert main(["infer", str(tmp_path), str(tmp_path / "line.png"), *laptop]) == exits.FAILED
    assert "manifest.json" in capsys.readouterr().err


def test_verify_names_a_missing_file_and_a_wrong_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key.pub").write_text("not a key")
    assert main(["verify", "--key", str(tmp_path / "key.pub"), "x.json"]) == exits.FAILED
    assert "key" in capsys.readouterr().err


def test_tables_line_up_and_values_read_well() -> None:
    assert table(("A", "LONG"), [("xx", "y")]) == "A   LONG\nxx  y"
    assert [value(one) for one in (None, True, False, 3.0, 3.25, "P")] == ["-", "yes", "no", "3", "3.2", "P"]
