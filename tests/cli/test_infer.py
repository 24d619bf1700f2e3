"""`driveway infer`, `bench` and `packages` on all three packages, with the real worker; and their complaints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from agent import wire
from agent.cli import exits
from agent.cli.answer_text import answer_text
from agent.cli.engine import takes
from agent.cli.main import EXECUTORS, main
from agent.cli.progress import Progress
from agent.package import MANIFEST, open_package
from agent.trust.keys import FileSigner
from hil.images import drawn_lines, upside_down
from hil.packages.orientation import build_orientation_package
from hil.packages.signing import put_package
from hil.packages.tensors import package_model
from hil.pages import drawn_page
from tests.cli.test_bench import CONFIG
from tests.hil.tiny_models import add_model, softmax_model
from tests.inference.desk import rewrite_manifest
from tests.onnx.test_check import HOSTILE

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb on a computer without a configuration; its exit code, and what it said."""

    def verb(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        laptop = () if "--config" in arguments else ("--config", str(tmp_path / "none.toml"))
        status = main([*map(str, arguments), *laptop])
        said = capsys.readouterr()
        return status, said.out, said.err

    return verb


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three packages as `driveway-hil package all` builds them, and the publisher's key beside it."""
    from hil.cli import main as hil_main  # noqa: PLC0415 - the command as it is run

    folder = tmp_path_factory.mktemp("cli")
    assert hil_main(["package", "all", str(folder / "packages"), "--sign", str(folder / "publisher.key")]) == 0
    return folder / "packages"


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    (line,) = drawn_lines(1, 3)
    files = {
        "line.png": line.png,
        "turned.png": upside_down(line).png,
        "page.png": drawn_page(480, 640, 9).png,
        "note.txt": b"not an image",
    }
    for name, body in files.items():
        (folder / name).write_bytes(body)
    return {name: folder / name for name in files}


def test_infer_reads(run: Run, packages: Path, inputs: dict[str, Path]) -> None:
    status, out, _ = run("infer", packages / "ocr", inputs["line.png"])
    text = drawn_lines(1, 3)[0].text
    assert (status, out) == (exits.FINE, f"{inputs['line.png']}: {text}\n")


def test_infer_tells_how_lines_lie(run: Run, packages: Path, inputs: dict[str, Path]) -> None:
    status, out, _ = run("infer", packages / "orientation", inputs["line.png"], inputs["turned.png"])
    upright, turned = out.splitlines()
    assert status == exits.FINE
    assert upright.startswith(f"{inputs['line.png']}: 0 (")
    assert turned.startswith(f"{inputs['turned.png']}: 180 (")
    assert " %), 180 (" in upright


def test_infer_finds_text(run: Run, packages: Path, inputs: dict[str, Path]) -> None:
    status, out, _ = run("infer", packages / "detector", inputs["page.png"])
    assert status == exits.FINE
    assert ": mask of 480 x 640 pixels, 1" in out
    assert out.endswith(" % set; fingerprint of 64 values\n")
    status, out, _ = run("infer", packages / "detector", inputs["page.png"], "--json")
    (answer,) = json.loads(out)
    assert (answer["mask"]["rows"], answer["mask"]["columns"]) == (480, 640)
    assert len(answer["mask"]["bits"]) == 480 * 640 // 6


def test_many_inputs_go_in_slices_that_fit_into_a_frame(run: Run, packages: Path, inputs: dict[str, Path]) -> None:
    """Together their masks are longer than what a worker can say at once."""
    status, out, _ = run("infer", packages / "detector", *[inputs["page.png"]] * 24, "--json")
    assert status == exits.FINE
    assert len(json.loads(out)) == 24
    assert len(out) > wire.MAX_FRAME_BYTES


def test_an_input_that_is_none_is_named_with_what_the_package_takes(
    run: Run, packages: Path, inputs: dict[str, Path]
) -> None:
    status, out, err = run("infer", packages / "orientation", inputs["note.txt"], inputs["line.png"])
    assert status == exits.FAILED
    assert f"{inputs['note.txt']}: not a readable PNG or JPEG image" in out
    assert "1 of 2 inputs have no answer; the package takes PNG or JPEG files of at most 2.0 MiB" in err
    status, _, err = run("infer", packages / "orientation", inputs["line.png"].with_name("none.png"))
    assert (status, "cannot read the input" in err, "give existing files" in err) == (exits.FAILED, True, True)


def test_a_tensor_of_another_dtype_or_shape_is_told_what_is_wanted(run: Run, tmp_path: Path) -> None:
    package = package_model(softmax_model(None, 2), tmp_path / "two", name="two", version="1", where="it")
    for name, values in (("good", [0, 0]), ("shape", [1, 2, 3])):
        np.save(tmp_path / f"{name}.npy", np.array(values, np.float32))
    np.save(tmp_path / "dtype.npy", np.array([0, 0], np.int64))
    files = [tmp_path / f"{name}.npy" for name in ("good", "shape", "dtype")]
    status, out, err = run("infer", package.path, *files)
    good, shape, dtype = out.splitlines()
    assert status == exits.FAILED
    assert good.endswith('outputs {"y": [0.5, 0.5]}')
    assert shape.endswith("a tensor <f4 (3,), not <f4 (2,)")
    assert dtype.endswith("a tensor <i8 (2,), not <f4 (2,)")
    assert (
        "2 of 3 inputs have no answer; the package takes files with x float32[2], each as numpy.save writes it" in err
    )


def test_what_a_package_of_several_tensors_takes(tmp_path: Path) -> None:
    package = package_model(add_model(None, 3), tmp_path / "add", name="add", version="1", where="it")
    assert takes(package).startswith("files with a float32[3], then b float32[3], each as numpy.save writes it, of at")


@pytest.mark.parametrize("verb", [("infer",), ("bench", "--package")])
def test_a_package_that_cannot_run_is_named_with_what_to_do(
    run: Run, packages: Path, inputs: dict[str, Path], tmp_path: Path, verb: tuple[str, ...]
) -> None:
    status, _, err = run(*verb, "nosuch", inputs["line.png"])
    assert status == exits.FAILED
    assert "there is no package nosuch; give its folder, or a name from `driveway packages`" in err
    damaged = Path(shutil.copytree(packages / "orientation", tmp_path / "damaged"))
    (damaged / "labels.txt").write_text("0\n90\n")
    status, _, err = run(*verb, damaged, inputs["line.png"])
    assert status == exits.FAILED
    assert "labels.txt does not have the listed SHA-256; fetch or build the package again" in err
    (damaged / "model.onnx").write_bytes(HOSTILE["a bomb of one Tile"][0])
    rewrite_manifest(damaged)
    status, _, err = run(*verb, damaged, inputs["line.png"])
    assert status == exits.FAILED
    assert "is not a model that may run" in err
    assert err.count("\n") == 2, "nobody vouches for it, and what is wrong with it"


def test_an_executor_that_is_not_there_is_no_reason_to_take_another(
    run: Run, packages: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    status, out, err = run("infer", packages / "ocr", inputs["line.png"], "--executor", "tensorrt_rtx")
    assert (status, out) == (exits.FAILED, "")
    assert "driveway: " in err.splitlines()[-1]
    assert "Traceback" not in err


def test_the_executors_on_the_command_line_are_those_of_the_wire() -> None:
    assert set(EXECUTORS) == set(get_args(wire.ExecutorName))


@pytest.mark.parametrize("name", ["orientation", "detector"])
def test_bench_tells_what_a_lease_would_feel(run: Run, packages: Path, inputs: dict[str, Path], name: str) -> None:
    options = ("--package", packages / name, inputs["page.png"], "--rounds", "2")
    status, out, _ = run("bench", *options, "--json")
    figures = json.loads(out)
    assert status == exits.FINE
    assert 0 < figures["min_items_per_s"] <= figures["items_per_s"] <= figures["max_items_per_s"]
    assert 0 < figures["warm_start_ms"] < figures["cold_start_ms"]
    assert figures["micro_batch_ms"] > 0
    assert figures["slice_items"] == (32 if name == "orientation" else 3), "masks are long"
    status, out, _ = run("bench", *options)
    assert status == exits.FINE
    assert " items/s (" in out
    assert "a vacate waits at most " in out
    assert "first answer of a new worker after " in out


# --- packages ---------------------------------------------------------------------------------------------------


def test_packages_in_a_folder(run: Run, packages: Path) -> None:
    status, out, _ = run("packages", packages)
    assert status == exits.FINE
    detector, ocr, orientation = out.replace("\n    ", " | ").splitlines()
    assert detector.startswith("detector: text-detector 6.0.0 ")
    assert "image → letterbox_normalize → model.onnx → threshold_bit_pack → tensor_fingerprint" in detector
    assert "buckets 1 of 480 x 640 px, 1 of 640 x 480 px, 1 of 960 x 960 px" in detector
    assert ", not checked | " in ocr
    assert "at most 2.0 MiB an item, 100000 items a job, 512 MiB of memory, 60 s to load" in orientation
    status, out, _ = run("packages", packages / "ocr", "--json")
    (one,) = json.loads(out)
    assert one["sha256"] == open_package(packages / "ocr").package_sha256
    assert (one["folder"], one["name"], one["limits"]["memory_mb"]) == ("ocr", "ocr-line", 1536)


def configured(folder: Path, packages: Path) -> Path:
    """A configuration whose packages are these, signed by the key beside them."""
    (folder / "publisher.pub").write_bytes((packages.parent / "publisher.pub").read_bytes())
    config = folder / "agent.toml"
    config.write_text(CONFIG.replace('"packages"', json.dumps(str(packages))), "utf-8")
    return config


def test_under_a_configuration_signatures_count(run: Run, packages: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(packages, tmp_path / "packages"))
    config = configured(tmp_path, packages)
    config.write_text(config.read_text().replace(str(packages), str(mine)), "utf-8")
    stranger = FileSigner.open_or_create(tmp_path / "stranger.key")
    put_package(build_orientation_package, mine / "strange", stranger)
    (mine / "ocr" / MANIFEST).write_bytes(b"{}")
    (mine / ".package-half").mkdir()
    status, out, _ = run("packages", "--config", config)
    lines = [line for line in out.splitlines() if not line.startswith(" ")]
    assert status == exits.DEGRADED
    assert [line.partition(":")[0] for line in lines] == ["detector", "ocr", "orientation", "strange"]
    assert lines[0].endswith("…, signed")
    assert "refused: package" in lines[1]
    assert "is not a valid manifest" in lines[1]
    assert "refused: no signature on the envelope was made by a trusted key" in lines[3]


def test_a_package_may_be_named(run: Run, packages: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    config = configured(tmp_path, packages)
    status, out, err = run("infer", "orientation", inputs["line.png"], "--config", config, "--rig")
    assert (status, out.startswith(f"{inputs['line.png']}: 0 ("), err) == (exits.FINE, True, "")
    status, _, err = run("infer", "nosuch", inputs["line.png"], "--config", config, "--rig")
    assert (status, "there is no package nosuch" in err) == (exits.FAILED, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "there is no configuration"), (("nowhere",), "there is no folder nowhere; give a package")],
)
def test_packages_nowhere(run: Run, arguments: tuple[str, ...], said: str) -> None:
    status, _, err = run("packages", *arguments)
    assert (status, said in err) == (exits.FAILED, True)


def test_an_empty_folder_has_no_package(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run("packages", tmp_path / "empty") == (exits.FINE, "There is no package.\n", "")


# --- words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"text": "a line", "confidence_permille": 9}, "a line"),
        ({"error": "no\x1b[31m image"}, "no[31m image"),
        ({"classes": [{"class": 7, "probability_permille": 1000}]}, "class 7 (100.0 %)"),
        ({"mask": {"rows": 2, "columns": 8, "bits": "8AE="}}, "mask of 2 x 8 pixels, 31.2 % set"),
        (
            {"mask": {"rows": 2, "columns": 8, "bits": "no base64"}},
            'mask {"rows": 2, "columns": 8, "bits": "no base64"}',
        ),
        ({"mask": {"rows": 0, "columns": 0, "bits": ""}}, 'mask {"rows": 0, "columns": 0, "bits": ""}'),
        ({"classes": 3}, "classes 3"),
        ({"fingerprint": {}}, "fingerprint {}"),
        ({"outputs": {"y": [1, 2]}, "text": "and"}, 'and; outputs {"y": [1, 2]}'),
    ],
)
def test_an_answer_in_words(answer: dict[str, Any], text: str) -> None:
    assert answer_text(answer) == text


@pytest.mark.parametrize("terminal", [False, True])
def test_a_build_tells_how_far_it_is(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    progress = Progress()
    for phase, done in (("parsing", 0), ("tactics", 100), ("tactics", 555)):
        progress.show(wire.Building(phase=phase, done_permille=done))
    progress.end()
    assert progress.built
    said = capsys.readouterr().err
    if terminal:
        assert said.endswith("\r\x1b[Kbuilding the engine: tactics 55.5 %\n")
    else:
        assert said == "building the engine: parsing\nbuilding the engine: tactics\n"
