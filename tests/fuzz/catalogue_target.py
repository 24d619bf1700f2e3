"""A catalogue as the network brings it, one file of it replaced: believed is what the operator signed, or nothing new.

A body is a byte that says what the car believes already (nothing, the first catalogue, the second), a byte that says
which file is replaced, and what stands in its place. The operator's keys are real; the fuzzer has none.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path

from agent.errors import StoreError
from agent.trust.catalogue import Catalogue
from hil.catalogue.command import add_dispatcher, deny
from tests.fuzz.targets import Target
from tests.trust.catalogue_world import OCR, World
from tests.trust.evidence_world import new_key

HEADS = 2
MEMORY = "/dev/shm"


class Believed(Exception):  # noqa: N818 - it is no error: it takes what was believed out before anything is kept
    """What the car came to believe."""

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__()
        self.catalogue = catalogue


def refresh() -> Target:
    """One refresh of a car, spoilt in one file: it believes one of the two catalogues that were signed, never older."""
    folder = tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None)
    world = World(Path(folder.name))
    world.operator.put(OCR, b"{}")
    world.operator.put("policies/family/1.2/policy.toml", b"reserve_percent = 40\n")
    add_dispatcher(world.operator, "d1", new_key().public_key_pem(), 3)
    world.operator.publish()
    first = world.refresh(world.car("first", "family"))
    old = world.published()
    deny(world.operator, "agents", "0.0.9", "loses slices")
    world.operator.put("releases/driveway-agent/0.1.0/wheel", b"wheel")
    world.operator.rotate("packages")
    world.operator.rotate("timestamp")
    world.operator.publish()
    second = world.refresh(world.car("second", "family"))
    published = world.freeze()
    names = sorted(published)
    states = ("nothing", "first", "second")

    def take(body: bytes) -> object:
        state, name = states[body[0] % 3] if body else states[0], names[body[1] % len(names)] if body[1:] else names[0]
        world.frozen = published | {name: body[HEADS:]}
        shutil.rmtree(world.folder / "car", ignore_errors=True)
        if state != "nothing":
            shutil.copytree(world.folder / state, world.folder / "car")
        try:
            world.car("car", "family").refresh(world.ms(), world.fetch, give)
        except Believed as said:
            return state == "second", said.catalogue
        except StoreError as error:
            raise AssertionError from error
        raise AssertionError("neither believed nor refused")

    seeds = [
        bytes([state, number]) + files[name]
        for number, name in enumerate(names)
        for state, files in enumerate((published, old, old))
        if name in files
    ]
    target = Target(take, seeds, ((False, first), (False, second), (True, second)))
    weakref.finalize(target, folder.cleanup)
    return target


def give(catalogue: Catalogue) -> None:
    raise Believed(catalogue)
