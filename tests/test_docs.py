"""The documents are true: their commands parse, their configuration loads, and their tables are complete."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import msgspec
import pytest

from agent.cli.main import parser
from agent.config import load
from agent.core.energy import LOW_VOLTAGE_LIMITS
from agent.core.gates import RULES, Timing
from agent.core.policy import Policy
from agent.fleet import enrolment_messages, messages, operator_messages
from agent.package import Manifest
from hil.acl.guarded import CLIENT_ID, CONF, Member, dynamic_security
from hil.cli import parser as hil_parser
from hil.scenario.loader import load as load_scenario
from kernels import OPS, operation

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.strip()]


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 10


def test_every_scenario_in_the_documents_loads(tmp_path: Path) -> None:
    texts = blocks(ROOT / "docs" / "scenarios.md", "toml")
    assert texts
    for number, text in enumerate(texts):
        path = tmp_path / f"s{number}.toml"
        path.write_text(text, "utf-8")
        assert load_scenario(path).expectations


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_in_the_documents_can_be_run(command: str) -> None:
    name, *arguments = shlex.split(command)
    if name == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert arguments[0] in targets
    else:
        known = {".venv/bin/driveway": parser, ".venv/bin/driveway-hil": hil_parser}
        known[name]().parse_args(arguments)


WHOLE = """
state_dir = "state"
control_socket = "control.sock"
[unit]
id = "car-0001"
[vehicle]
profiles = ["tesla-model3"]
[[vehicle.bus]]
name = "party"
interface = "socketcan"
channel = "can0"
[fleet]
brokers = ["broker.example:8883"]
dispatcher_key = "dispatcher.pub"
[inference]
packages_dir = "packages"
publisher_key = "publisher.pub"
"""
"""What a block that shows one table alone is put into."""


def test_every_configuration_in_the_documents_loads(tmp_path: Path) -> None:
    texts = [block for page in PAGES if page.name != "scenarios.md" for block in blocks(page, "toml")]
    assert texts
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.toml"
        path.write_text(text if "control_socket" in tomllib.loads(text) else WHOLE + text, "utf-8")
        load(path).fleet.addresses()


def test_every_json_block_in_the_documents_is_json() -> None:
    texts = [(page.name, block) for page in PAGES for block in blocks(page, "json")]
    assert texts
    for page, text in texts:
        lines = [line for line in text.splitlines() if line]
        parts = lines if all(line[0] == "{" and line[-1] == "}" for line in lines) else [text]
        assert all(msgspec.json.decode(part) is not None for part in parts), page


def test_what_is_written_in_docs_about_a_file_of_ours_is_about_one_that_is_there() -> None:
    for page in PAGES:
        for path in re.findall(r"`((?:agent|hil|kernels|tests|systemd|docs)/[\w./@-]+\.\w+)`", page.read_text("utf-8")):
            assert (ROOT / path).exists() or "NAME" in path, f"{page.name} speaks of {path}"


def test_every_policy_key_is_documented_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", (ROOT / "docs" / "policy.md").read_text("utf-8"), re.MULTILINE)
    defaults = msgspec.json.decode(msgspec.json.encode(Policy()))
    assert {key for key, _ in rows} == set(defaults)
    for key, said in rows:
        assert msgspec.json.decode(said) == defaults[key], key


def test_every_operation_is_documented_with_its_parameters() -> None:
    text = (ROOT / "docs" / "packages.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (before, images|before, tensors|behind) \|", text, re.MULTILINE)
    stands = {
        name: "behind" if hasattr(kind, "answerer") else f"before, {'images' if hasattr(kind, 'fits') else 'tensors'}"
        for name, kind in OPS.items()
    }
    assert dict(rows) == stands
    said = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\S+) \|", text, re.MULTILINE)
    defaults = {
        (name, field.name): "needed" if field.required else msgspec.json.encode(field.default).decode()
        for name, kind in OPS.items()
        for field in msgspec.structs.fields(kind)
    }
    assert {(name, field): default for name, field, default in said} == defaults
    assert len(said) == len(defaults)


def test_the_manifest_in_the_documents_is_one() -> None:
    (block,) = blocks(ROOT / "docs" / "packages.md", "json")
    manifest = msgspec.json.decode(block.replace('"…"', f'"{"0" * 64}"'), type=Manifest)
    for call in (*manifest.pipeline.pre, *manifest.pipeline.post):
        operation(call.op, call.params)


def test_every_gate_is_documented() -> None:
    text = (ROOT / "docs" / "policy.md").read_text("utf-8")
    assert [gate for gate in RULES if f"| {gate} |" not in text] == []


def plain(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds > 60 else f"{seconds:g} s"


def test_the_minimum_times_in_the_documents_are_those_of_the_gates() -> None:
    text = (ROOT / "docs" / "policy.md").read_text("utf-8")
    for gate, rule in RULES.items():
        (row,) = re.findall(rf"^\| {gate} \| .*$", text, re.MULTILINE)
        timing = rule.timing
        times = {"closed for": timing.min_closed_s, "open for": timing.min_open_s}
        times |= {"held for": timing.min_hold_s} if timing.min_hold_s != Timing().min_hold_s else {}
        for word, seconds in times.items():
            assert not seconds or f"{word} {plain(seconds)}" in row, f"{gate}: {word} {seconds} s"
            assert seconds or timing.patient or word not in row, f"{gate}: {word}"


def test_the_low_voltage_thresholds_in_the_documents_are_those_of_the_gate() -> None:
    text = (ROOT / "docs" / "policy.md").read_text("utf-8")
    rows = zip(*(msgspec.structs.astuple(LOW_VOLTAGE_LIMITS[name]) for name in ("lead", "lithium")), strict=True)
    for word, (lead, lithium) in zip(("start", "hold", "stop", "stop at once"), rows, strict=True):
        assert f"| {word} | {lead} V | {lithium} V |" in text


def test_every_message_is_documented() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    down = ("GrantMessage", "VerdictMessage", "PricesMessage", "DemandMessage")
    for kind in ("Status", "Request", "Result", "Yield", *down):
        assert hasattr(messages, kind) or hasattr(operator_messages, kind)
        assert f"`{kind}`" in text


def test_every_field_of_enrolment_is_documented() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text("utf-8").partition("## Enrolment\n")[2].partition("\n## ")[0]
    kinds = (
        enrolment_messages.Enrolment,
        enrolment_messages.Rotation,
        enrolment_messages.Enrolled,
        enrolment_messages.TpmProof,
        enrolment_messages.Activation,
        enrolment_messages.TpmChallenge,
    )
    for kind in kinds:
        missing = [name for name in kind.__struct_fields__ if f"`{name}`" not in text]
        assert missing == [], kind.__name__


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_guarded_broker_in_the_documents_is_the_one_that_is_tested() -> None:
    conf, role = blocks(ROOT / "docs" / "brokers.md", "conf"), blocks(ROOT / "docs" / "brokers.md", "json")
    said = {line.split()[0] for line in conf[0].splitlines()}
    assert said == {line.split()[0] for line in (CONF.replace("{client_id}", CLIENT_ID)).splitlines()}
    made = dynamic_security([Member("car-0001", "97")], ["dispatcher-1"], "g-7f21")
    assert msgspec.json.decode(role[0]) == msgspec.json.decode(made)
    assert all(msgspec.json.decode(one) for one in role)
