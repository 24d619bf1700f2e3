"""What the inference tests work with: a way to change a package and list it anew, and a worker with its words."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent import wire
from agent.clock import SystemClock
from agent.inference.launcher import WorkerProcess, launch
from agent.package import MANIFEST, Bucket, Manifest, Package, encode_manifest, open_package
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu
from agent.worker.pipeline import Pipeline
from agent.worker.results import canonical, golden_items
from tests.inference.ways import Way

PATIENCE_S = 60
"""How long a test waits for what must come; only a broken worker ever lets it pass."""

Kind = TypeVar("Kind")


def rewrite_manifest(path: Path, change: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> Package:
    """Change a package's manifest and list its files with the digests they have now."""
    manifest = change(msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest))
    files = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in manifest.files}
    (path / MANIFEST).write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))
    return open_package(path)


def with_one_bucket(package: Package, path: Path) -> Package:
    """A copy of an image package in `path` with one bucket, which takes less time to load, and its golden answers anew.

    What is sampled of a wider output stands elsewhere in it.
    """
    shutil.copytree(package.path, path)
    copy = rewrite_manifest(path, lambda one: msgspec.structs.replace(one, buckets=(Bucket(items=1, width=960),)))
    engine = OnnxRuntimeCpu(copy.read(copy.manifest.model), threads=1, memory_mb=1024)
    answers = Pipeline(copy, engine).compute(golden_items(copy))
    engine.close()
    (path / copy.manifest.golden.expected).write_bytes(canonical(answers))
    return rewrite_manifest(path)


@dataclass
class Desk:
    """A worker and everything it said."""

    way: Way | None = None
    """How it is started; none: as a child."""
    messages: list[wire.WorkerMessage] = field(default_factory=list)
    ends: list[tuple[int, bool, str]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def launch(self, **options: Any) -> WorkerProcess:
        if self.way is not None:
            return self.way.launch(self._heard, self._ended, **options)
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
