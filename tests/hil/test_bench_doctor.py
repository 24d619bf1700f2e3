"""A bench is looked at as it is described: what is missing, down or may not be opened is said, with the mend."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agent.errors import ConfigError
from hil.cli import main
from hil.rigs.doctor import Bench, BenchAccelerator, BenchBus, BenchTpm, examine, load


def interface(net: Path, name: str, kind: str, flags: str) -> Path:
    folder = net / name
    folder.mkdir(parents=True)
    (folder / "type").write_text(f"{kind}\n", "ascii")
    (folder / "flags").write_text(f"{flags}\n", "ascii")
    return net


def problems(bench: Bench, net: Path) -> dict[str, str]:
    return {one.check: one.problem for one in examine(bench, net=net)}


def test_an_interface_is_there_a_can_and_up(tmp_path: Path) -> None:
    net = interface(interface(tmp_path, "eth9", "1", "0x1003"), "can8", "280", "0x40080")
    bench = Bench(name="b", bus=tuple(BenchBus(name=one, interface=one) for one in ("can9", "eth9", "can8")))
    assert problems(bench, net) == {
        "bus can9 on can9": "there is no such interface",
        "bus eth9 on eth9": "it is no CAN interface",
        "bus can8 on can8": "it is down",
    }


def test_an_interface_that_is_up_must_be_readable(tmp_path: Path) -> None:
    net = interface(tmp_path, "can77", "280", "0x40081")
    found = problems(Bench(name="b", bus=(BenchBus(name="party", interface="can77"),)), net)
    assert found["bus party on can77"] == ""
    assert "may not be read" in found["frames on can77"]


def test_devices_folders_and_modules(tmp_path: Path) -> None:
    bench = Bench(
        name="b",
        state_dir=str(tmp_path),
        accelerator=BenchAccelerator(
            device=str(tmp_path / "gpu"), modules=("json", "tensorrt9"), python=sys.executable
        ),
        tpm=BenchTpm(device="/dev/null"),
    )
    found = problems(bench, tmp_path)
    assert found["buses"] == "no bus is described"
    assert found[f"state in {tmp_path}"] == ""
    assert found[f"accelerator {tmp_path / 'gpu'}"] == "it is not there"
    assert found[f"json in {sys.executable}"] == ""
    assert "tensorrt9" in found[f"tensorrt9 in {sys.executable}"]
    assert found["tpm /dev/null"] == ""


def test_a_description_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "bench.toml"
    path.write_text('name = "b"\n[[bus]]\nname = "party"\ninterfase = "can0"\n')
    with pytest.raises(ConfigError, match="interfase"):
        load(path)


def test_the_verb_says_what_is_wrong_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.toml"
    path.write_text('name = "b"\n[[bus]]\nname = "party"\ninterface = "can-none"\n')
    assert main(["doctor", str(path), "--json", str(tmp_path / "found.json")]) == 1
    assert "there is no such interface" in capsys.readouterr().out
    assert "can-none" in (tmp_path / "found.json").read_text()
