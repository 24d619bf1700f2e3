"""What the inference tests work with: a way to change a package and list it anew, and a worker with its words."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent import wire
from agent.clock import SystemClock
from agent.inference.launcher import WorkerProcess, launch
from agent.package import MANIFEST, Manifest, Package, encode_manifest, open_package

PATIENCE_S = 60
"""How long a test waits for what must come; only a broken worker ever lets it pass."""

Kind = TypeVar("Kind")


def rewrite_manifest(path: Path, change: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> Package:
    """Change a package's manifest and list its files with the digests they have now."""
    manifest = change(msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest))
    files = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in manifest.files}
    (path / MANIFEST).write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))
    return open_package(path)


@dataclass
class Desk:
    """A worker and everything it said."""

    messages: list[wire.WorkerMessage] = field(default_factory=list)
    ends: list[tuple[int, bool, str]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def launch(self, **options: Any) -> WorkerProcess:
        return launch(SystemClock(), self._heard, self._ended, **options)

    async def wait_for(self, kind: type[Kind]) -> Kind:
        """The first message of a kind that was not waited for yet; fails when the worker ends without it."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for place, message in enumerate(self.messages):
                    if isinstance(message, kind):
                        del self.messages[: place + 1]
                        return message
                assert not self.ends, f"ended without {kind.__name__}: {self.ends}, {self.messages}"
                self._news.clear()
                await self._news.wait()

    async def end(self) -> tuple[bool, str]:
        """Whether the end was expected, and how it came."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.ends:
                self._news.clear()
                await self._news.wait()
        ((_, expected, detail),) = self.ends
        return expected, detail

    def _heard(self, message: wire.WorkerMessage) -> None:
        self.messages.append(message)
        self._news.set()

    def _ended(self, pid: int, expected: bool, detail: str) -> None:
        self.ends.append((pid, expected, detail))
        self._news.set()
