"""The documents are true: their commands parse, their configuration loads, and their tables are complete."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import msgspec
import pytest

from agent.cli.main import parser
from agent.config import load
from agent.core.gates import RULES
from agent.core.policy import Policy
from agent.fleet import messages

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.strip()]


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_in_the_documents_can_be_run(command: str) -> None:
    name, *arguments = shlex.split(command)
    if name == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert arguments[0] in targets
    else:
        assert name == ".venv/bin/driveway"
        parser().parse_args(arguments)


def test_every_configuration_in_the_documents_loads(tmp_path: Path) -> None:
    texts = [block for page in PAGES for block in blocks(page, "toml")]
    assert texts
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.toml"
        path.write_text(text, "utf-8")
        load(path).fleet.addresses()


def test_every_policy_key_is_documented_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", (ROOT / "docs" / "policy.md").read_text("utf-8"), re.MULTILINE)
    defaults = msgspec.to_builtins(Policy())
    assert {key for key, _ in rows} == set(defaults)
    for key, said in rows:
        assert msgspec.json.decode(said) == defaults[key], key


def test_every_gate_is_documented() -> None:
    text = (ROOT / "docs" / "policy.md").read_text("utf-8")
    assert [gate for gate in RULES if f"| {gate} |" not in text] == []


def test_every_message_is_documented() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    for kind in ("Status", "Request", "Result", "Yield", "GrantMessage", "VerdictMessage"):
        assert hasattr(messages, kind)
        assert f"`{kind}`" in text


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
