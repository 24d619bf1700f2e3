"""The shim is only worth what it notices: right kernels run, and each kind of fault is reported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.operation import Buffer, Float32, Int32, Launch
from tests.cuda import sanitized
from tests.cuda.host_kernels import Guarded, HostKernels, LaunchError, kernel_names, library, pack

PROBES = Path(__file__).parent / "probes"
ORDERS = range(5)
pytestmark = pytest.mark.usefixtures("host_kernels")  # skipped where they cannot be compiled


@pytest.fixture(scope="module", params=[False, True], ids=["usual", "portable"])
def probes(request: pytest.FixtureRequest, host_kernels: Path) -> HostKernels:
    return HostKernels(library(PROBES, portable=request.param))


def probe(name: str, threads: int, *arguments: str, blocks: int = 1) -> Launch:
    return Launch(name, (blocks, 1, 1), (threads, 1, 1), tuple(Buffer(one) for one in arguments))


def run(kernels: HostKernels, launch: Launch, count: int, order: int = 0, **buffers: NDArray[Any]) -> NDArray[np.int32]:
    out = np.zeros(count, dtype=np.int32)
    kernels.launch(launch, {"out": out, **buffers}, order)
    return out


@pytest.mark.parametrize("order", ORDERS)
def test_every_thread_of_every_block_runs_once(probes: HostKernels, order: int) -> None:
    grid, block = (3, 2, 2), (5, 3, 2)
    seen = run(probes, Launch("probe_indices", grid, block, (Buffer("out"),)), 12 * 30 * 6, order).reshape(-1, 6)
    expected = [
        (tx, ty, tz, bx, by, bz)
        for bz in range(2) for by in range(2) for bx in range(3)
        for tz in range(2) for ty in range(3) for tx in range(5)
    ]  # fmt: skip
    assert [tuple(one) for one in seen.tolist()] == expected


def test_arguments_lie_at_their_natural_alignment(probes: HostKernels) -> None:
    arguments = (Int32(1), Buffer("second"), Float32(0.5), Int32(40), Buffer("sums"))
    assert len(pack(arguments, {"second": 1, "sums": 2})) == 32
    sums = np.zeros(1, dtype=np.float32)
    launch = Launch("probe_arguments", (1, 1, 1), (1, 1, 1), arguments)
    probes.launch(launch, {"second": np.array([200], dtype=np.int32), "sums": sums})
    assert sums[0] == 241.5


@pytest.mark.parametrize("order", ORDERS)
def test_warp_operations(probes: HostKernels, order: int) -> None:
    values = np.random.default_rng(0).integers(-9, 9, 64).astype(np.int32)
    out = run(probes, probe("probe_warp", 64, "values", "out"), 320, order, values=values).reshape(5, 2, 32)
    lanes, warps = np.arange(32), values.reshape(2, 32)
    assert (out[0] == warps[:, lanes ^ 5]).all()
    assert (out[1] == warps[:, np.where(lanes < 29, lanes + 3, lanes)]).all()
    assert (out[2] == warps[:, [7]]).all()
    votes = ((warps > 0) * (1 << lanes.astype(np.uint64))).sum(axis=1).astype(np.uint32)
    assert (out[3].view(np.uint32) == votes[:, None]).all()
    assert (out[4][:, :16] == warps[:, (lanes ^ 1)[:16]]).all()
    assert (out[4][:, 16:] == np.asarray((warps[:, 16:] > 0).any(axis=1, keepdims=True))).all()


@pytest.mark.parametrize("order", ORDERS)
def test_a_warp_barrier_shows_what_the_warp_wrote(probes: HostKernels, order: int) -> None:
    values = np.arange(64, dtype=np.int32)
    out = run(probes, probe("probe_warp_barrier", 64, "values", "out"), 64, order, values=values)
    assert (out == values ^ 31).all()


@pytest.mark.parametrize("order", ORDERS)
def test_atomics_and_barriers_count_every_thread(probes: HostKernels, order: int) -> None:
    assert run(probes, probe("probe_counts", 100, "out", blocks=7), 7, order).tolist() == [100] * 7


def test_shared_memory_is_poisoned_before_each_block(probes: HostKernels) -> None:
    assert set(run(probes, probe("probe_poison", 4, "out", blocks=3), 4).view(np.uint32).tolist()) == {0xA5A5A5A5}


def test_orders_differ(probes: HostKernels) -> None:
    seen = [run(probes, probe("probe_order", 64, "out"), 64, order).tolist() for order in ORDERS]
    assert seen[0] == list(range(64))
    assert seen[1] == list(range(63, -1, -1))
    assert all(sorted(one) == seen[0] for one in seen)
    assert len({tuple(one) for one in seen}) == len(seen)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fault_two_barriers", r"a divergent barrier: threads stand at probes.cu:\d+ and at probes.cu:\d+"),
        ("fault_missed_barrier", r"a barrier that some threads never reach, probes.cu:\d+"),
        ("fault_missing_lane", "a warp operation waits for a thread that has ended"),
        ("fault_barrier_beside_shuffle", r"a warp operation at probes.cu:\d+ and a barrier at probes.cu:\d+"),
        ("fault_left_out_by_its_mask", "a thread that its own mask leaves out"),
        ("fault_lane_outside_the_mask", "a shuffle from a lane that takes no part"),
    ],
)
def test_what_would_hang_or_be_undefined_is_reported(probes: HostKernels, name: str, message: str, order: int) -> None:
    with pytest.raises(LaunchError, match=message):
        run(probes, probe(name, 64, "out"), 64, order)
    assert run(probes, probe("probe_counts", 100, "out"), 1, order).tolist() == [100]  # and the next launch is fine


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "message"),
    [
        ((1, 1, 1), (1025, 1, 1), 0, "a block of 1025 threads"),
        ((1, 1, 1), (0, 1, 1), 0, "a block of 0 threads"),
        ((1, 1, 1), (1, 1, 65), 0, "a block of 65 threads"),
        ((0, 1, 1), (1, 1, 1), 0, "a grid of 0 x 1 x 1 blocks"),
        ((1, 65_536, 1), (1, 1, 1), 0, "a grid of 1 x 65536 x 1 blocks"),
        ((1, 1, 1), (1, 1, 1), 4, "dynamic shared memory"),
    ],
)
def test_what_no_device_launches_is_refused(
    probes: HostKernels, grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int, message: str
) -> None:
    with pytest.raises(LaunchError, match=message):
        run(probes, Launch("probe_counts", grid, block, (Buffer("out"),), shared_bytes), 1)


def test_writing_beside_a_buffer_breaks_its_canary(probes: HostKernels) -> None:
    out = Guarded(16)
    probes.launch(probe("fault_writes_past", 4, "out"), {"out": out.bytes})
    with pytest.raises(LaunchError, match="a kernel wrote beside out"):
        out.release("out")


def test_every_exported_kernel_is_found_in_the_source() -> None:
    source = (PROBES / "probes.cu").read_text("utf-8")
    assert len(kernel_names(source)) == source.count('extern "C"') == 16


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("fault_shared_overrun", "global-buffer-overflow|out of bounds"),
        ("fault_reads_past", "use-after-poison|heap-buffer-overflow"),
        ("fault_writes_past", "use-after-poison|heap-buffer-overflow"),
    ],
)
def test_the_sanitised_build_stops_at(name: str, report: str, tmp_path: Path) -> None:
    arguments = '"values", "out"' if name == "fault_reads_past" else '"out"'
    script = tmp_path / "one_fault.py"
    script.write_text(
        f"""
from pathlib import Path
from tests.cuda.host_kernels import *
from kernels.operation import Buffer, Launch
buffers = {{name: Guarded(16) for name in ({arguments},)}}
launch = Launch({name!r}, (1, 1, 1), (8, 1, 1), tuple(Buffer(name) for name in buffers))
HostKernels(Path({str(library(PROBES, sanitized=True))!r})).launch(launch, {{n: b.bytes for n, b in buffers.items()}})
""",
        "utf-8",
    )
    done = sanitized.python(str(script))
    assert done.returncode != 0
    assert "probes.cu" in done.stderr
    assert any(word in done.stderr for word in report.split("|")), done.stderr


def test_a_process_without_libasan_does_not_claim_to_be_sanitised() -> None:
    command = [sys.executable, "-m", "tests.cuda.sanitized", "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "no libasan" in done.stderr
