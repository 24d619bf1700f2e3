"""What the core is told of the accelerator: whether it is ready, which packages lack a plan, and how a build goes.

A *plan* is what an engine makes of a package's model for one computer; TensorRT cannot run a package without. Where the
configured executor needs none (ONNX Runtime), no package ever lacks one, and of all this only `AcceleratorSeen` comes.
"""

from __future__ import annotations

from agent.core.event import Event
from agent.core.model import Accelerator


class AcceleratorSeen(Event, frozen=True, tag=True):
    """What a survey of the configured executor found, or that it was lost; nothing runs while it is not ready."""

    accelerator: Accelerator


class PlansMissing(Event, frozen=True, tag=True):
    """The packages (SHA-256) that cannot be run before their plan is built, most wanted first; replaces what was."""

    packages: tuple[str, ...]


class BuildProgress(Event, frozen=True, tag=True):
    """A build goes on, in the process `pid`: what the builder is at, in its own words, and how much of that is done."""

    pid: int
    package: str
    phase: str
    done_permille: int


class PlanMade(Event, frozen=True, tag=True):
    """A build has come to its end with a plan, and its worker is gone next.

    Keeping the plan (hashing and writing it) goes on without the worker: PlanBuilt or PlanNotKept follows, also after
    WorkerGone.
    """

    package_sha256: str
    plan_bytes: int


class PlanBuilt(Event, frozen=True, tag=True):
    """A plan is built and kept on the disk."""

    package_sha256: str
    plan_bytes: int


class PlanNotKept(Event, frozen=True, tag=True):
    """A plan was built and the disk did not take it: nothing is wrong with the package."""

    package_sha256: str
    detail: str


class BuildRefused(Event, frozen=True, tag=True):
    """No plan can be built of this package's model, now or later; its worker is on its way out."""

    package_sha256: str
    detail: str


class PlanUnusable(Event, frozen=True, tag=True):
    """The plan of the package that a worker was started for is gone, damaged or stale: it has to be built anew.

    Nothing is wrong with the package; the worker is on its way out.
    """

    package_sha256: str
    detail: str


AcceleratorEvent = (
    AcceleratorSeen | PlansMissing | BuildProgress | PlanMade | PlanBuilt | PlanNotKept | BuildRefused | PlanUnusable
)
