"""The shape of the project, as a test: who may import whom, and what a vehicle imports when it starts."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORKER_MAY = ("agent.worker", "agent.wire", "agent.package", "agent.onnx", "agent.errors")
TRUST_MAY = ("agent.trust", "agent.errors")
ONNX_MAY = ("agent.onnx", "agent.errors")
CORE_LIBRARIES = {"msgspec", "agent"}
IMPURE = {"time", "asyncio", "logging", "os", "random", "secrets", "socket", "subprocess", "threading", "pathlib", "io"}


def imports(folder: str) -> list[tuple[str, str]]:
    """(file, module imported) for everything below a folder or in a file, function bodies included."""
    found = []
    path = ROOT / folder
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            name = str(file.relative_to(ROOT))
            if isinstance(node, ast.Import):
                found += [(name, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                found += [(name, node.module)]
                found += [(name, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def broken_core_rules(seen: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What in the core is not pure: a shell of ours, another library, a clock or the world."""
    broken = []
    for file, module in seen:
        top = module.partition(".")[0]
        ours = top == "agent" and module != "agent" and not module.startswith("agent.core")
        foreign = top not in sys.stdlib_module_names and top not in CORE_LIBRARIES
        if ours or foreign or top in IMPURE:
            broken.append((file, module))
    return broken


def test_the_core_is_pure() -> None:
    assert broken_core_rules(imports("agent/core")) == []


@pytest.mark.parametrize("module", ["agent.store", "time", "asyncio", "numpy", "random"])
def test_the_rule_for_the_core_can_fail(module: str) -> None:
    assert broken_core_rules([("agent/core/x.py", module)])


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("agent/worker", WORKER_MAY),
        ("agent/trust", TRUST_MAY),
        ("agent/wire.py", WORKER_MAY),
        ("agent/onnx", ONNX_MAY),
        ("kernels", ()),
    ],
)
def test_who_may_import_what_of_ours(folder: str, allowed: tuple[str, ...]) -> None:
    ours = [(file, module) for file, module in imports(folder) if module.startswith(("agent.", "hil"))]
    assert [one for one in ours if not one[1].startswith(allowed)] == []


def test_nothing_in_the_agent_imports_the_rigs() -> None:
    assert [one for one in imports("agent") + imports("kernels") if one[1].split(".")[0] == "hil"] == []


def test_a_rehearsal_is_pure_of_the_daemon_and_no_part_of_it() -> None:
    """What judges a policy uses the core and the readers of the vehicle; what runs in the car does without it."""
    may = tuple(
        f"agent.{room}" for room in ("simulate", "core", "vehicle", "explain", "zones", "config", "errors", "recorder")
    )
    ours = [one for one in imports("agent/simulate") if one[1].startswith(("agent.", "hil"))]
    assert [one for one in ours if not one[1].startswith(may)] == []
    users = {file for file, module in imports("agent") if module.startswith("agent.simulate")}
    assert {file for file in users if not file.startswith("agent/simulate/")} <= {"agent/cli/simulate.py"}


def test_the_command_talks_to_the_socket_not_to_the_daemon() -> None:
    talking = [one for file in ("client", "status", "work", "text", "main") for one in imports(f"agent/cli/{file}.py")]
    assert [one for one in talking if one[1].startswith(("agent.daemon", "agent.store", "agent.fleet"))] == []


def test_the_daemon_imports_no_engine_and_no_rig() -> None:
    """What a vehicle's daemon loads: nothing for CUDA, NumPy, images or rigs."""
    script = "import sys, agent.daemon; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )
    heavy = {
        "can",
        "cantools",
        "rich",
        "psutil",
        "grpc",
        "numpy",
        "onnxruntime",
        "PIL",
        "pycuda",
        "tensorrt",
        "hil",
        "kernels",
        "matplotlib",
        "iotcore",
        "tuf",
        "securesystemslib",
        "urllib3",
    }
    assert loaded & heavy == set()


def test_the_daemon_waits_with_what_it_rarely_needs() -> None:
    """Certificates are for an enrolment, archives for a catalogue: a megabyte that most daemons never need."""
    script = "import sys, agent.daemon; print(*sorted({'cryptography.x509', 'zipfile'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_question_to_the_daemon_imports_little() -> None:
    script = "import sys, agent.cli.main, agent.cli.status; print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    loaded = set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )
    assert loaded & {"msgspec", "paho", "cryptography", "structlog", "numpy", "asyncio"} == set()
