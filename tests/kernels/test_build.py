"""The build of the kernels, with the real compilers: what comes out, and what fails it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from kernels import build as building
from kernels.build import ARCHITECTURES, BUDGETS, NVRTC_HOME, PTX, SOURCES, build, main, read_budgets
from kernels.compiler import BuildError, other_cuda, read_sources, resources_in, toolkit
from kernels.fatbin import FatbinError, Resources, load, read_manifest, targets_of

HOME = toolkit()
OTHER = None if HOME is None else other_cuda(HOME)
pytestmark = pytest.mark.skipif(HOME is None, reason="no nvcc (make packages prepares it)")
budgeted = pytest.mark.skipif(OTHER is not None, reason=str(OTHER))


def small(out: Path, **changes: object) -> None:
    """Build for one architecture."""
    options = {"architectures": ("sm_87",), "ptx": None, "jetpack_6": False, **changes}
    build(out, **options)  # type: ignore[arg-type] # options by name


def write(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.cu").write_text(text)
    return folder


def budgets(path: Path, *rows: str) -> Path:
    path.write_text("spill_bytes = 0\n[kernels]\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.long
@budgeted
def test_everything_for_every_device(tmp_path: Path) -> None:
    """The whole build; what was compiled before is taken from the cache."""
    if not NVRTC_HOME.is_dir():
        pytest.skip("no NVRTC 12.6 (make packages prepares it)")
    out = tmp_path / "kernels"
    manifest = build(out)
    assert read_manifest(out) == manifest
    newest, orin = manifest.files
    assert (newest.architectures, newest.ptx) == (ARCHITECTURES, PTX)
    assert (orin.architectures, orin.ptx, orin.cuda, orin.container) == (("sm_87",), None, "12.6", "cubin")
    assert (out / orin.name).read_bytes()[8] == 7, "the version of the ELF ABI that CUDA 12.6 knows"
    assert {one.name for one in out.iterdir()} == {newest.name, orin.name, "manifest.json"}
    for capability in [(8, 6), (8, 7), (8, 9), (9, 0), (11, 0), (12, 0)]:
        assert load(out, (13, 0), capability).target == f"sm_{capability[0]}{capability[1]}"
    assert load(out, (12, 6), (8, 7)).name == orin.name
    kernels = {kernel for takes in newest.resources.values() for kernel in takes}
    assert kernels == set(read_budgets(BUDGETS).kernels)
    with pytest.raises(FatbinError, match="no kernels for"):
        load(out, (12, 6), (9, 0))


@budgeted
def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    """From sources that lie elsewhere, and without the cache."""
    elsewhere = tmp_path / "elsewhere" / "kernels"
    elsewhere.mkdir(parents=True)
    for path in (*SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh")):
        shutil.copy(path, elsewhere)
    small(tmp_path / "one", sources=elsewhere, cache=tmp_path / "cache")
    small(tmp_path / "two")
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert len(one) == 2


@budgeted
def test_a_budget_that_is_exceeded_fails_the_build(tmp_path: Path) -> None:
    text = BUDGETS.read_text("utf-8").replace(
        "ctc_greedy_decode_float32 = { registers = 40 }",
        "ctc_greedy_decode_float32 = { registers = 8 }",
    )
    tight = tmp_path / "budgets.toml"
    tight.write_text(text)
    with pytest.raises(BuildError, match=r"ctc_greedy_decode_float32 takes \d+ registers on sm_87, and may take 8"):
        small(tmp_path / "out", budgets=tight)
    assert not (tmp_path / "out").exists()


@budgeted
def test_a_build_that_fails_leaves_the_last_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    small(out)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(BuildError, match="has no budget"):
        small(out, budgets=budgets(tmp_path / "none.toml"))
    assert (out / "manifest.json").read_bytes() == before


@budgeted
def test_a_kernel_without_a_budget_and_a_budget_without_a_kernel(tmp_path: Path) -> None:
    every = BUDGETS.read_text("utf-8") + "\nno_such_kernel = { registers = 8 }\n"
    more = tmp_path / "more.toml"
    more.write_text(every)
    with pytest.raises(BuildError, match="there is no kernel no_such_kernel, which has a budget"):
        small(tmp_path / "out", budgets=more)
    less = tmp_path / "less.toml"
    less.write_text(
        every.replace("no_such_kernel = { registers = 8 }", "").replace("threshold_bit_pack_float16", "other")
    )
    with pytest.raises(BuildError, match="threshold_bit_pack_float16 has no budget"):
        small(tmp_path / "out", budgets=less)


SPILLS = """
extern "C" __global__ void __launch_bounds__(1024, 1) spills(const volatile float* in, float* out) {
    float kept[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) kept[i] = in[threadIdx.x + 1024 * i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 128; ++i) out[threadIdx.x + 1024 * i] = kept[i] * kept[127 - i];
}
"""


def test_a_kernel_that_spills_fails_the_build(tmp_path: Path) -> None:
    sources = write(tmp_path / "sources", spills=SPILLS)
    roomy = budgets(tmp_path / "roomy.toml", "spills = { registers = 255 }")
    with pytest.raises(BuildError, match=r"spills spills [1-9]\d* bytes on sm_87, and may spill 0"):
        small(tmp_path / "out", sources=sources, budgets=roomy, cache=tmp_path / "cache")


def test_files_may_use_the_same_names_within(tmp_path: Path) -> None:
    """Every file is in a namespace of its own, and all kernels come to lie in one module."""
    text = 'constexpr int STEP = {0};\nextern "C" __global__ void {1}(int* out) {{ *out = STEP; }}\n'
    sources = write(tmp_path / "sources", one=text.format(1, "first"), two=text.format(2, "second"))
    table = budgets(tmp_path / "table.toml", "first = { registers = 16 }", "second = { registers = 16 }")
    small(tmp_path / "out", sources=sources, budgets=table, cache=tmp_path / "cache")
    manifest = read_manifest(tmp_path / "out")
    assert sorted(manifest.files[0].resources["sm_87"]) == ["first", "second"]
    assert manifest.sources_sha256 == read_sources(sources).sha256
    body = (tmp_path / "out" / manifest.files[0].name).read_bytes()
    assert targets_of(body) == ("sm_87",)
    assert b".text.first\0" in body
    assert b".text.second\0" in body


def test_a_kernel_that_the_compiler_refuses_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = write(tmp_path / "sources", broken='extern "C" __global__ void broken() { nonsense; }\n')
    with pytest.raises(BuildError, match=r"broken\.cu\(1\).*nonsense"):
        small(tmp_path / "out", sources=sources, cache=tmp_path / "cache")
    with pytest.raises(BuildError, match="no kernels"):
        read_sources(tmp_path)


def test_the_command_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "toolkit", lambda: None)
    assert main([str(tmp_path / "out")]) == 1
    assert "there is no CUDA toolkit; `make packages`" in capsys.readouterr().err


def test_the_compilers_report() -> None:
    kernel = "ptxas info    : Compiling entry function '{}' for 'sm_87'\nptxas info    : Function properties for {}\n"
    memory = "    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
    used = "ptxas info    : Used 40 registers, used 1 barriers, 64 bytes smem, 388 bytes cmem[0]\n"
    bare = "ptxas info    : Used 9 registers\n"
    text = (
        "ptxas info    : 0 bytes gmem\n"
        + kernel.format("b", "b")
        + memory
        + used
        + kernel.format("a", "a")
        + memory
        + bare
    )
    assert resources_in(text) == {"a": Resources(9, 12, 16, 0), "b": Resources(40, 12, 16, 64)}
    assert resources_in("") == {}
    for cut in (kernel.format("a", "a") + memory, kernel.format("a", "a") + used):
        with pytest.raises(BuildError, match="does not say what a takes"):
            resources_in(cut)


def test_the_document_names_every_kernel_with_its_budget() -> None:
    text = (SOURCES.parent / "docs" / "kernels.md").read_text("utf-8")
    for kernel, budget in read_budgets(BUDGETS).kernels.items():
        assert re.search(rf"`{kernel}` {budget.registers}(, | \|)", text)
