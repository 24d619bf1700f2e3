"""Completion by a real bash, and what is installed for zsh, fish and man: all of it from the one table of verbs."""

from __future__ import annotations

import gzip
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.cli import exits
from agent.cli.completion import manual, places, script
from agent.cli.examples import EXAMPLES
from agent.cli.main import main, parser
from systemd.package import deb

ASK = """
source {script}
COMP_WORDS=({words})
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
compopt() {{ :; }}
_driveway
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bash") / "driveway"
    path.write_text(script("bash"))
    return path


def completed(bash: Path, line: str, folder: Path) -> set[str]:
    """What a real bash proposes at the end of the line."""
    words = [*shlex.split(line), *([""] if line.endswith(" ") else [])]
    text = ASK.format(script=shlex.quote(str(bash)), words=" ".join(map(shlex.quote, words)))
    said = subprocess.run(
        ["bash", "--norc", "-c", text], capture_output=True, text=True, timeout=20, check=True, cwd=folder
    )
    assert said.stderr == ""
    return set(said.stdout.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("driveway sta", {"status"}),
        ("driveway l", {"leases", "ledger"}),
        ("driveway config ", {"check", "show"}),
        ("driveway ledger pro", {"prove"}),
        ("driveway --json config --config x.toml sh", {"show"}),
        ("driveway config --config check ", {"check", "show"}),
        ("driveway doctor --o", {"--offline"}),
        ("driveway infer --executor ", {"onnxruntime", "tensorrt", "tensorrt_rtx"}),
        ("driveway infer --executor tensorrt_", {"tensorrt_rtx"}),
        ("driveway completion ", {"bash", "zsh", "fish"}),
        ("driveway status --config p", {"page.png", "proof.json"}),
        ("driveway verify pr", {"proof.json"}),
        ("driveway infer ocr pa", {"page.png"}),
        ("driveway leases --limit ", set()),
        ("driveway status x", set()),
    ],
)
def test_bash_proposes(bash: Path, tmp_path: Path, line: str, expected: set[str]) -> None:
    (tmp_path / "page.png").touch()
    (tmp_path / "proof.json").touch()
    assert completed(bash, line, tmp_path) == expected


def test_bash_proposes_every_verb_and_every_option_that_help_names(bash: Path, tmp_path: Path) -> None:
    found = {place.words: place for place in places(parser())}
    assert {"", "ledger prove", "keys rotate", "config check", "bundle"} <= set(found)
    assert completed(bash, "driveway ", tmp_path) == {name for name, _ in found[""].verbs}
    place = found["ledger prove"]
    assert completed(bash, "driveway ledger prove -", tmp_path) == {
        name for option in place.options for name in option.names
    }


def test_every_verb_has_examples_and_each_of_them_is_right() -> None:
    top = parser()
    for place in places(top):
        if place.words:
            assert EXAMPLES.get(place.words), f"`driveway {place.words} --help` has no example"
    for words, examples in EXAMPLES.items():
        for example in examples:
            command = example.partition(" | ")[0].partition(" > ")[0]
            program, *arguments = shlex.split(command)
            assert program == "driveway"
            assert example.startswith(f"driveway {words.split()[0]}")
            top.parse_args(arguments)


def test_help_ends_with_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ledger", "prove", "--help"])
    assert capsys.readouterr().out.endswith(
        f"examples:\n  {EXAMPLES['ledger prove'][0]}\n  {EXAMPLES['ledger prove'][1]}\n"
    )


@pytest.mark.parametrize(
    ("shell", "check"), [("bash", ["bash", "-n"]), ("zsh", ["zsh", "-n"]), ("fish", ["fish", "--no-execute"])]
)
def test_each_shell_reads_its_script(shell: str, check: list[str], tmp_path: Path) -> None:
    text = script(shell)
    assert all(
        verb in text for verb in ("status", "ledger", "completion", "--offline" if shell != "fish" else "offline")
    )
    if shutil.which(check[0]) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(text)
    subprocess.run([*check, str(tmp_path / "script")], check=True, timeout=20)


def test_the_verb_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == exits.FINE
    assert capsys.readouterr().out == script("bash")


def test_the_manual_names_every_verb(tmp_path: Path) -> None:
    text = manual()
    for place in places(parser()):
        assert f'.SS "{place.words}"' in text or not place.words
    if shutil.which("groff") is None:
        return
    (tmp_path / "driveway.1").write_text(text)
    said = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", str(tmp_path / "driveway.1")],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert said.stderr == ""


def test_the_package_installs_what_people_look_for(tmp_path: Path) -> None:
    deb._for_people(tmp_path)
    assert (tmp_path / "bash-completion/completions/driveway").read_text() == script("bash")
    assert (tmp_path / "zsh/site-functions/_driveway").read_text().startswith("#compdef driveway\n")
    assert "complete -c driveway" in (tmp_path / "fish/vendor_completions.d/driveway.fish").read_text()
    assert gzip.decompress((tmp_path / "man/man1/driveway.1.gz").read_bytes()).decode() == manual()
