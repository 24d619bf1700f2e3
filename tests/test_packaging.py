"""The parts of `make package` that need no build: the vehicle's lock, its bill, what is refused, dpkg's scripts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from email.parser import HeaderParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from systemd.package import deb, sbom, tree, wheels
from systemd.package.target import TARGETS, BuildError
from systemd.package.wheels import Pin
from tests.tools import lacking

ROOT = Path(__file__).parents[1]
LOCK, WHOLE = ((ROOT / name).read_text() for name in (".ci/requirements-vehicle.txt", ".ci/requirements.txt"))
DIGEST = "a" * 64
AMD64 = TARGETS["amd64"]
ELSEWHERE = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "can" else real(name, package)
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "can":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
from agent.vehicle.binding import bind_buses
from agent.vehicle.profile import load_profile
assert "cantools.tester" not in sys.modules
from agent.vehicle.dbc import load_dbc
print(len(load_dbc(__import__("pathlib").Path(sys.argv[1])).messages))
"""
DBC = """VERSION ""
BU_: car
BO_ 280 DriveSystem: 8 car
 SG_ Gear : 0|3@1+ (1,0) [0|7] "" car
"""


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_a_vehicle_runs_what_was_tested() -> None:
    tested = {(pin.name, pin.version): set(pin.hashes) for pin in wheels.read_lock(WHOLE)}
    for pin in wheels.read_lock(LOCK):
        assert set(pin.hashes) <= tested[pin.name, pin.version]


def test_nothing_of_the_rigs_is_locked_for_a_vehicle() -> None:
    names = {pin.name for pin in wheels.read_lock(LOCK)}
    assert {"cantools", "cryptography", "msgspec", "onnxruntime", "paho-mqtt", "tuf"} <= names
    assert not names & {"python-can", "iotcore", "matplotlib", "rich", "pytest", "rapidocr", "tensorrt", "pycuda"}


@given(st.text(max_size=200))
def test_any_text_is_pins_with_hashes_or_no_lock_at_all(text: str) -> None:
    try:
        pins = wheels.read_lock(text)
    except BuildError:
        return
    assert all(pin.name and pin.version and pin.hashes for pin in pins)


@pytest.mark.parametrize(
    "text",
    [
        "numpy==2.0",
        "numpy==2.0 \\\n    --hash=md5:abc\n",
        f"numpy>=2.0 --hash=sha256:{DIGEST}",
        f"--hash=sha256:{DIGEST}",
        "git+https://example.org/x.git",
        "--index-url=https://example.org",
    ],
)
def test_what_is_not_pinned_by_its_hash_is_refused(text: str) -> None:
    with pytest.raises(BuildError):
        wheels.read_lock(text)


def test_a_pin_is_read_with_its_marker() -> None:
    text = f"numpy==2.4.6 ; python_version < '3.12' \\\n    --hash=sha256:{DIGEST} \\\n    --hash=sha256:{'b' * 64}\n"
    assert wheels.read_lock(text) == (
        Pin("numpy", "2.4.6", "python_version < '3.12'", (f"sha256:{DIGEST}", f"sha256:{'b' * 64}")),
    )


def test_the_newest_c_library_that_a_wheel_needs_counts_by_the_oldest_that_it_names() -> None:
    names = ("a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "b-1-py3-none-any.whl")
    assert wheels.glibc_minor([Path(name) for name in names]) == 17
    newer = Path("c-1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl")
    assert wheels.glibc_minor([*(Path(name) for name in names), newer]) == 27


# --- what may not be in a tree ----------------------------------------------------------------------------------------


def elf(machine: int) -> bytes:
    return b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little") + bytes(40)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "tree/lib/python3.11/site-packages"
    (folder / "agent").mkdir(parents=True)
    (folder / "agent/core.so").write_bytes(elf(AMD64.elf_machine))
    tree.check(tmp_path / "tree", folder, AMD64)
    return folder


def test_the_rigs_and_writers_to_a_bus_are_refused(site: Path) -> None:
    for name in ("hil", "can"):
        (site / name).mkdir()
        with pytest.raises(BuildError, match=f"must not have {name}"):
            tree.check(site.parents[2], site, AMD64)
        (site / name).rmdir()


def test_programs_of_another_computer_are_refused_but_for_compiled_kernels(site: Path) -> None:
    (site / "kernels/compiled").mkdir(parents=True)
    (site / "kernels/compiled/orin.cubin").write_bytes(elf(tree.CUDA))
    tree.check(site.parents[2], site, AMD64)
    (site / "numpy.so").write_bytes(elf(TARGETS["arm64"].elf_machine))
    with pytest.raises(BuildError, match=r"numpy\.so is not for x86_64"):
        tree.check(site.parents[2], site, AMD64)


def test_links_out_of_the_tree_are_refused(site: Path) -> None:
    (site / "link").symlink_to("/etc/passwd")
    with pytest.raises(BuildError, match="leads to"):
        tree.check(site.parents[2], site, AMD64)


def test_dbc_files_are_read_where_nothing_can_write_to_a_bus(tmp_path: Path) -> None:
    (tmp_path / "car.dbc").write_text(DBC)
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "car.dbc")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("1", 0), done.stderr


# --- the bill ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("License-Expression: MIT AND Apache-2.0", [{"expression": "MIT AND Apache-2.0"}]),
        ("License: Apache License 2.0", [{"license": {"id": "Apache-2.0"}}]),
        ("License: Something of our own", [{"license": {"name": "Something of our own"}}]),
        ("Classifier: License :: OSI Approved :: MIT License", [{"license": {"id": "MIT"}}]),
        ("Summary: nothing said", []),
    ],
)
def test_a_licence_is_told_as_well_as_it_can_be(lines: str, found: list[object]) -> None:
    assert sbom.licence(HeaderParser().parsestr(f"Name: x\n{lines}\n\n")) == found


def test_names_and_versions_become_package_urls() -> None:
    assert sbom.purl("Foo_Bar.baz", "1.0+cpu") == "pkg:pypi/foo-bar-baz@1.0%2Bcpu"


# --- what dpkg runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", sorted(deb.SCRIPTS.iterdir()), ids=lambda path: path.name)
def test_the_scripts_are_sound(script: Path) -> None:
    subprocess.run(["sh", "-n", str(script)], check=True)
    if shutil.which("shellcheck") is None:
        lacking("not installed: shellcheck")
    said = subprocess.run(["shellcheck", "--shell=sh", str(script)], capture_output=True, text=True, check=False)
    assert said.stdout == ""


def test_units_are_enabled_sockets_first_and_stopped_before_what_they_start() -> None:
    units = deb.Units.of(ROOT / "systemd")
    assert units.enabled.index("driveway-worker.socket") < units.enabled.index("driveway.service")
    order = ("driveway-update.timer", "driveway-update.service", "driveway.service", "driveway-worker.socket")
    assert sorted(order, key=units.stopped.index) == list(order)
    assert not any("@" in name for name in units.stopped)
