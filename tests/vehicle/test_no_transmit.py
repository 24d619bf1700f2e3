"""The agent reads the vehicle and never writes to it: there is no code here that could."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import agent.vehicle

SOURCES = sorted(Path(agent.vehicle.__file__).parent.rglob("*.py"))
TRANSMITTING = {
    "send",
    "sendall",
    "sendto",
    "sendmsg",
    "sendmsg_afalg",
    "sendfile",
    "send_fds",
    "send_periodic",
    "sock_sendall",
    "sock_sendto",
    "write",
    "writev",
    "writelines",
    "write_bytes",
    "write_text",
}
FORBIDDEN_NAMES = {"Message", "getattr", "eval", "exec", "__import__", "import_module", "fdopen", "makefile"}
"""What builds a frame to send (python-can's), or hides what is called. cantools' Message is a DBC's description."""


ALLOWED = {
    ("bcm.py", "for setup in self._setups:\n    channel.send(setup)"),
    ("apart.py", "sys.stdout.buffer.write(msgspec.msgpack.encode(answer))"),
}
"""The two writes: RX_SETUP to the kernel's broadcast manager, which is about receiving (test_bcm checks it), and what a
child process answers the daemon."""


def offences(tree: ast.AST, file: str = "") -> Iterator[str]:
    allowed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and (file, ast.unparse(node)) in ALLOWED
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in allowed:
            continue
        if isinstance(node, ast.Attribute) and node.attr in TRANSMITTING | {"makefile", "fdopen"}:
            yield f"line {node.lineno}: .{node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "Message":
            yield f"line {node.lineno}: builds a {ast.unparse(node.func)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_NAMES:
            yield f"line {node.lineno}: {node.func.id}()"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_in_the_vehicle_room_can_transmit(path: Path) -> None:
    assert list(offences(ast.parse(path.read_text()), path.name)) == []


def test_the_check_sees_the_ways_to_transmit() -> None:
    for code in (
        "bus.send(m)",
        "s.sendto(b, a)",
        "f = s.sendmsg",
        "can.Message()",
        "getattr(s, n)()",
        "os.write(1, b)",
        *(code for _, code in ALLOWED),
    ):
        assert list(offences(ast.parse(code))), code
    assert len(SOURCES) >= 8
