"""What the pipeline's benchmark runs, and where: packages with one bucket each, their items, and processors.

One bucket, so that nobody chooses: the bare loop and the leased worker run the very same shape. The packages are the
recipes that cars run (`hil.packages`) and made work whose micro-batch takes what one likes (`hil.bench.made_work`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agent.inference.runner import PackageRunner
from agent.package import Bucket, Package
from agent.wire import Loaded
from agent.worker.images import decode_image
from hil.bench.made_work import ITEMS, build_work, work_items
from hil.images import drawn_lines, upside_down
from hil.packages.detector import build_detector_package
from hil.packages.ocr import HEIGHT_PX, build_ocr_package
from hil.packages.orientation import WIDTH_PX, build_orientation_package
from hil.packages.recipe import GOLDEN_EXPECTED, GOLDEN_INPUT, MODEL, Recipe, build
from hil.pages import drawn_page
from kernels.resize_normalize_pad import resized_width

OCR_BUCKET = Bucket(items=1, width=480)
ORIENTATION_BUCKET = Bucket(items=16, width=WIDTH_PX)
"""What a car without an accelerator takes where a line needs about half a millisecond."""
DETECTOR_BUCKET = Bucket(items=1, height=960, width=960)
"""The largest of the package: the one that a vacate would have to wait for."""
LINES, PAGES = 400, 6
SEED = 3


@dataclass(frozen=True)
class Load:
    """A package with one bucket, and items that fill micro-batches of it; `name` says package and micro-batch."""

    name: str
    package: Package
    items: list[bytes]
    batch_items: int

    def repeated(self, micro_batches: int) -> list[bytes]:
        """The items of so many micro-batches, again and again the same ones."""
        return [self.items[place % len(self.items)] for place in range(micro_batches * self.batch_items)]


@dataclass(frozen=True)
class Place:
    """The processors that a worker, or the bare loop, is held to, and the engine's threads."""

    processors: tuple[int, ...]
    threads: int

    @property
    def spare(self) -> bool:
        """Whether there is a processor that the engine leaves free."""
        return len(self.processors) > self.threads

    @property
    def words(self) -> str:
        """For a person."""
        return f"{self.threads} thread{'s' * (self.threads > 1)} on {len(self.processors)}"


def places() -> list[Place]:
    """All processors with one left free, all with a thread each, and one alone; the first is the main one."""
    all_here = tuple(sorted(os.sched_getaffinity(0)))
    wanted = [Place(all_here, max(1, len(all_here) - 1)), Place(all_here, len(all_here)), Place(all_here[:1], 1)]
    return list(dict.fromkeys(wanted))


def build_load(name: str, folder: Path) -> Load:
    """Build one of `LOADS` into `folder`; raises PackageError."""
    return LOADS[name](folder)


def _ocr(folder: Path) -> Load:
    """Lines that fit the bucket."""
    fitting = [png for png in _lines() if _width_px(png) <= (OCR_BUCKET.width or 0)]
    return _of_recipe(build_ocr_package, OCR_BUCKET, fitting, folder)


def _orientation(folder: Path) -> Load:
    """Every second line is upside down."""
    drawn = drawn_lines(LINES, SEED)
    lines = [(upside_down(line) if place % 2 else line).png for place, line in enumerate(drawn)]
    return _of_recipe(build_orientation_package, ORIENTATION_BUCKET, lines, folder)


def _detector(folder: Path) -> Load:
    """Pages of the bucket's size."""
    rows, columns = DETECTOR_BUCKET.height or 0, DETECTOR_BUCKET.width or 0
    pages = [drawn_page(rows, columns, SEED + place).png for place in range(PAGES)]
    return _of_recipe(build_detector_package, DETECTOR_BUCKET, pages, folder)


def _work(milliseconds: float, folder: Path) -> Load:
    """Made work."""
    package = build_work(folder, milliseconds)
    return Load(f"{package.manifest.name} {ITEMS}", package, work_items(ITEMS * 64), ITEMS)


LOADS: dict[str, Callable[[Path], Load]] = {
    "ocr": _ocr,
    "orientation": _orientation,
    "detector": _detector,
    "work-2ms": partial(_work, 2.0),
    "work-10ms": partial(_work, 10.0),
}
"""Every load by the name that a person gives (`hil.bench.PIPELINE_PACKAGES`)."""


def _lines() -> list[bytes]:
    return [line.png for line in drawn_lines(LINES, SEED)]


def _width_px(png: bytes) -> int:
    """How wide a line is at the recogniser's height."""
    rows, columns, _ = decode_image(png).shape
    return resized_width(rows, columns, HEIGHT_PX)


def _of_recipe(recipe: Callable[[Path], Package], bucket: Bucket, items: list[bytes], folder: Path) -> Load:
    package = _one_bucket(recipe(folder / "whole"), bucket, items[:2], folder / "one-bucket")
    shape = "x".join(str(size) for size in (bucket.items, bucket.height, bucket.width) if size is not None)
    return Load(f"{package.manifest.name} {shape}", package, items, bucket.items)


def _one_bucket(package: Package, bucket: Bucket, golden: Sequence[bytes], folder: Path) -> Package:
    """The package with this bucket alone."""
    manifest = package.manifest
    others = manifest.files.keys() - {MODEL, GOLDEN_INPUT, GOLDEN_EXPECTED}
    recipe = Recipe(
        name=manifest.name,
        version=manifest.version,
        where=MODEL,
        model=package.read(MODEL),
        input=manifest.input,
        pre=manifest.pipeline.pre,
        post=manifest.pipeline.post,
        buckets=(bucket,),
        limits=manifest.limits,
        tolerance_permille=manifest.golden.tolerance_permille,
        golden=golden,
        check_answers=lambda _: None,
        files={name: package.read(name) for name in others},
        precisions=manifest.precisions,
    )
    return build(recipe, folder)


@contextlib.asynccontextmanager
async def leased(load: Load, place: Place) -> AsyncIterator[tuple[PackageRunner, Loaded]]:
    """A worker with the package loaded, and what it said of it; killed at the end. Raises DrivewayError."""
    runner = PackageRunner(load.package.path, place.threads)
    try:
        with held_to(place):
            loaded = await runner.open()
        yield runner, loaded
    finally:
        await runner.close()


@contextlib.contextmanager
def held_to(place: Place) -> Iterator[None]:
    """What is started meanwhile keeps to the place's processors for good."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, place.processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
