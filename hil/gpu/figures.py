"""What the suite found, as plain values: the report is drawn from these, and `--json` is these."""

from __future__ import annotations

import msgspec

SLACK_MB = 8
"""What the device's free memory may differ by itself."""
LEAST_FOR_P99 = 100
GROWTH_MB = 16
"""What a process may hold more after many slices; a leak of two kilobytes a slice shows after ten thousand."""


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A figure that is read back must be one of ours."""


class Facts(Strict, frozen=True, kw_only=True):
    """The machine, and every version that figures depend on; empty where something is not there."""

    device: str
    compute_capability: str
    memory_mb: int
    integrated: bool
    driver: str
    cuda_toolkit: str
    pycuda: str
    engine: str
    kernels_sha256: str
    agent: str
    python: str
    system: str
    processor: str
    cores: int


class Check(Strict, frozen=True, kw_only=True):
    """A kernel or a package against its reference. `equal_permille` of the values were equal bit for bit."""

    name: str
    case: str
    values: int
    equal_permille: int
    largest_error: float
    right: bool
    detail: str = ""


class Bandwidth(Strict, frozen=True, kw_only=True):
    """How fast a kernel moves what it must move, beside a plain copy on the device in the same run.

    `moved_mb` is read plus written once; `of_copy` is its rate over the copy's, both with data larger than the caches.
    """

    kernel: str
    case: str
    moved_mb: float
    kernel_us: float
    kernel_gb_s: float
    copy_gb_s: float
    of_copy: float


class Throughput(Strict, frozen=True, kw_only=True):
    """Micro-batches a second: the whole pipeline's slots, the bare engine in a loop, and `trtexec` where it is."""

    package: str
    case: str
    engine_ms: float
    bare_per_s: float
    pipeline_per_s: float
    ratio: float
    graph: bool
    python_us: float
    """What the binding costs a micro-batch: submit, wait and results, less the waiting."""
    trtexec_per_s: float | None = None


class Vacate(Strict, frozen=True, kw_only=True):
    """Giving the accelerator back, from the order to nothing computing and to the memory being free again.

    Of fewer than 100 `times` there is no 99th percentile: the p99 fields hold the longest then, and `tail` says so.
    """

    how: str
    times: int
    micro_batch_ms: float
    idle_p50_ms: float
    idle_p99_ms: float
    freed_p50_ms: float
    freed_p99_ms: float
    memory_mb: int
    left_mb: int

    @property
    def tail(self) -> str:
        """What the p99 fields are."""
        return "p99" if self.times >= LEAST_FOR_P99 else f"max of {self.times}"


class Start(Strict, frozen=True, kw_only=True):
    """From starting a worker to its first result."""

    how: str
    start_ms: float


class Endurance(Strict, frozen=True, kw_only=True):
    """Many slices in one process: what it holds must not grow."""

    slices: int
    device_grown_mb: float
    host_grown_mb: float
    per_s: float


class Recovery(Strict, frozen=True, kw_only=True):
    """A context lost on purpose: what the process said (LostError, if right), and how soon a new one answers right."""

    how: str
    reported: str
    right_again: bool
    again_ms: float


class Omitted(Strict, frozen=True, kw_only=True):
    """A chapter that did not run (to its end), and why. `failed`: it should have, and something broke."""

    chapter: str
    why: str
    failed: bool


class Figures(Strict, frozen=True, kw_only=True):
    """All of it."""

    facts: Facts
    checks: tuple[Check, ...] = ()
    bandwidths: tuple[Bandwidth, ...] = ()
    throughputs: tuple[Throughput, ...] = ()
    vacates: tuple[Vacate, ...] = ()
    starts: tuple[Start, ...] = ()
    endurances: tuple[Endurance, ...] = ()
    recoveries: tuple[Recovery, ...] = ()
    omitted: tuple[Omitted, ...] = ()
    wall_s: float = 0.0

    @property
    def faults(self) -> list[str]:
        """What is wrong, a sentence each; speed is reported, not judged."""
        found = [f"{one.name}, {one.case}: not as its reference" for one in self.checks if not one.right]
        found += [f"{one.how}: {one.reported}" for one in self.recoveries if not one.right_again]
        found += [f"{one.chapter}: {one.why}" for one in self.omitted if one.failed]
        found += [f"{one.how}: {one.left_mb} MB of the device stay" for one in self.vacates if one.left_mb > SLACK_MB]
        for one in self.endurances:
            if max(one.device_grown_mb, one.host_grown_mb) > GROWTH_MB:
                grown = f"device {one.device_grown_mb:.1f} MB, host {one.host_grown_mb:.1f} MB"
                found.append(f"{one.slices} slices in one process: {grown} more than before")
        return found if self.checks else [*found, "nothing was checked"]


def labelled(one: msgspec.Struct) -> dict[str, object]:
    """A figure's fields with their names, for a person: what is no 99th percentile is not called one."""
    fields = msgspec.structs.asdict(one)
    if isinstance(one, Vacate):
        return {name.replace("p99", one.tail.replace(" ", "_")): value for name, value in fields.items()}
    return fields
