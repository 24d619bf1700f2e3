"""Images on the stand-in driver: real ones are looked at as a driver would, before the host's kernels stand in."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels.build import CACHE, SOURCES
from kernels.compiler import Nvcc, compile_cached, read_sources, toolkit
from tests.cuda.conftest import RunOnDevice
from tests.cuda.driver_programs import PRELUDE

LOAD = """
from pathlib import Path
image = Path(sys.argv[2]).read_bytes()
def load(body):
    return failed(lambda: cuda.module_from_buffer(body).get_function("ctc_greedy_decode_float32"))
"""


@pytest.fixture(scope="module")
def fatbin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real fatbin with code for two architectures."""
    home = toolkit()
    if home is None:
        pytest.skip("no nvcc (make packages prepares it)")
    nvcc, sources = Nvcc(home), read_sources(SOURCES)
    parts = {target: compile_cached(nvcc, sources, target, CACHE).body for target in ("sm_87", "sm_90")}
    path = tmp_path_factory.mktemp("kernels") / "two.fatbin"
    path.write_bytes(nvcc.join(parts))
    return path


def test_a_real_fatbin_runs(run_on_device: RunOnDevice, fatbin: Path) -> None:
    program = (
        LOAD
        + """
assert load(image) == ""
module = cuda.module_from_buffer(image)
assert "named symbol not found" in failed(module.get_function, "no_such_kernel")
kernel = module.get_function("ctc_greedy_decode_float32")
x = np.random.default_rng(3).random((2, 5, CLASSES)).astype(np.float32)
best, probability = np.zeros((2, 5), np.int32), np.zeros((2, 5), np.float32)
kernel(cuda.In(x), cuda.Out(best), cuda.Out(probability), np.int32(CLASSES), grid=(5, 2), block=(256, 1, 1))
assert (best == x.argmax(-1)).all()
"""
    )
    done = run_on_device(PRELUDE + program, str(fatbin))
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_no_module_for_this_device(run_on_device: RunOnDevice, fatbin: Path) -> None:
    """A driver is not told where an image ends, so what is cut short is found by what the image says of itself."""
    program = (
        LOAD
        + """
for wrong in (b"", b"\\0" * 100, b"MZ" + bytes(200), image[:40] + bytes(4000), image[:16] + bytes(len(image) - 16)):
    assert "device kernel image is invalid" in load(wrong), wrong[:20]
changed = bytearray(image)
changed[16 + 64] ^= 1  # the first cubin's magic
assert "device kernel image is invalid" in load(bytes(changed))
assert "device kernel image is invalid" in load(b"HOSTSHIM:/no/such/library\\0")
"""
    )
    done = run_on_device(PRELUDE + program, str(fatbin))
    assert done.returncode == 0, done.stderr
    done = run_on_device(PRELUDE + LOAD + "print(load(image))", str(fatbin), capability="12.0")
    assert "no kernel image is available" in done.stdout
