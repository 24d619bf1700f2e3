"""Whoever verifies needs nothing but this package and `cryptography`: no other of the agent's parts or dependencies.

Each module is imported by a process of its own that refuses every other import, so that what one module brings in
cannot hide what the next one needs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.trust.statement import Statement
from tests.trust.evidence_world import World

ROOT = Path(__file__).parents[2]
NEEDS_MORE = {"catalogue_client": "tuf"}
"""The modules that say in their first lines what else they need."""
MODULES = sorted(path.stem for path in (ROOT / "agent" / "trust").glob("*.py"))

ALONE = """
import sys

class Refuse:
    ALLOWED = {"cryptography", "_cffi_backend", "cffi", "typing_extensions"} | sys.stdlib_module_names
    OURS = ("agent", "agent.errors", "agent.trust")

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.ALLOWED or name in self.OURS or name.startswith("agent.trust."):
            return None
        raise ModuleNotFoundError(f"{name} is refused here", name=name)

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
"""


def alone(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the code where nothing else can be imported."""
    command = [sys.executable, "-c", ALONE + code, str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=60, check=False)


@pytest.mark.parametrize("module", [one for one in MODULES if one not in NEEDS_MORE])
def test_each_module_needs_nothing_but_cryptography(module: str) -> None:
    name = f"agent.trust.{module}".removesuffix(".__init__")
    done = alone("import importlib\nimportlib.import_module(sys.argv[2])", name)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("module", NEEDS_MORE)
def test_what_else_one_needs_is_refused_there_and_it_says_so(module: str) -> None:
    done = alone("import importlib\nimportlib.import_module(sys.argv[2])", f"agent.trust.{module}")
    assert f"{NEEDS_MORE[module]} is refused here" in done.stderr
    assert f"needs python-{NEEDS_MORE[module]}" in (ROOT / "agent" / "trust" / f"{module}.py").read_text("utf-8")


@pytest.mark.parametrize("name", ["msgspec", "agent.ports", "agent.fleet", "securesystemslib"])
def test_anything_else_would_be_seen(name: str) -> None:
    assert f"{name} is refused here" in alone(f"import {name}").stderr


def test_a_third_party_verifies_with_nothing_else(statement: Statement, tmp_path: Path) -> None:
    """Not only imported: a result and a proof are verified there, and a spoilt one is refused."""
    world = World(statement)
    for name, body in (("result", world.result()), ("proof", world.proof())):
        (tmp_path / name).write_bytes(body)
    for name, signer in (("unit", world.unit), ("dispatcher", world.dispatcher)):
        (tmp_path / name).write_text(signer.public_key_pem(), "ascii")
    done = alone(VERIFY, str(tmp_path))
    assert (done.stdout.split(), done.stderr) == (["job-0", "statement", "refused"], "")


VERIFY = """
from pathlib import Path
from agent.errors import TrustError
from agent.trust import bundle
from agent.trust.keys import keyid, load_verifying_key

folder = Path(sys.argv[2])
unit, dispatcher = (load_verifying_key((folder / name).read_text()) for name in ("unit", "dispatcher"))
result = (folder / "result").read_bytes()
print(bundle.verify_result(result, {keyid(unit): unit}).lease.job)
print(bundle.verify_proof((folder / "proof").read_bytes(), {keyid(unit): unit}, {keyid(dispatcher): dispatcher}).kind)
try:
    bundle.verify_result(result, {keyid(dispatcher): dispatcher})
except TrustError:
    print("refused")
"""
