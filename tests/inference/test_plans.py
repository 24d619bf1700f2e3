"""The plan cache: what comes out is, in every bit, what this device put in under this name, or nothing comes out."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import wire
from agent.disk import RESERVE_BYTES
from agent.errors import StoreError
from agent.inference import plans
from agent.inference.plans import HEADER_BYTES, PlanCache, open_cache, plan_name, timing_name
from agent.package import Bucket, Manifest, OpCall, Package, PipelineSpec
from agent.sealed import InputMemory
from agent.trust.device_secret import DeviceSecret
from tests.inference.desk import rewrite_manifest
from tests.inference.test_shelf import put

PLATFORM = wire.Platform(
    executor="tensorrt",
    version="10.3.0.30",
    driver="540.4.0",
    compute_capability="8.7",
    device="Orin",
    memory_mb=30_000,
    integrated=True,
)
SECRET = DeviceSecret(b"s" * 32)
NAME = "ab" * 32
BODY = random.Random(5).randbytes(700)


def memory(body: bytes = BODY) -> InputMemory:
    return InputMemory.holding(body)


def cache(folder: Path, secret: DeviceSecret = SECRET, **options: int) -> PlanCache:
    return PlanCache(folder / "plans", secret, **({"reserve_bytes": 0} | options))


def keep(one: PlanCache, body: bytes = BODY, name: str = NAME) -> Path:
    given_memory = memory(body)
    one.write(name, given_memory)
    given_memory.close()
    return one._path(name, "plan")


def read(one: PlanCache, name: str = NAME) -> bytes | None:
    found = one.read(name)
    if found is None:
        return None
    try:
        return found.memory.read()
    finally:
        found.close()


# --- what comes out -------------------------------------------------------------------------------------------


def test_a_plan_comes_out_as_it_went_in_sealed_and_under_its_digest(tmp_path: Path) -> None:
    path = keep(cache(tmp_path))
    found = cache(tmp_path).read(NAME)
    assert found is not None
    assert found.memory.read() == BODY
    assert found.sha256 == hashlib.sha256(BODY).hexdigest()
    with pytest.raises(OSError, match="not permitted"):
        os.write(found.memory.descriptor, b"x")
    found.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == HEADER_BYTES + len(BODY)


def test_what_is_not_there_is_not_there(tmp_path: Path) -> None:
    one = cache(tmp_path)
    assert (one.holds(NAME), read(one)) == (False, None)
    with pytest.raises(ValueError, match="names no plan"):
        one.holds("../" * 3)


def test_any_flipped_bit_and_any_cut_is_found(tmp_path: Path) -> None:
    """Every byte of the file, and every length that it may be cut to or grow to."""
    one = cache(tmp_path)
    path = keep(one)
    whole = path.read_bytes()
    damaged = [
        whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :] for place in range(len(whole))
    ]
    damaged += [whole[:length] for length in range(len(whole))] + [whole + b"\0", whole + whole]
    for body in damaged:
        path.write_bytes(body)
        assert read(one) is None
        assert not path.exists(), "what is damaged does not stay"
    path.write_bytes(whole)
    assert read(one) == BODY


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_nothing_that_we_did_not_write_is_ever_loaded(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, head: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    one = cache(folder)
    path = keep(one)
    written = path.read_bytes()
    path.write_bytes((written[:HEADER_BYTES] if head else plans.MAGIC) + body)
    assert read(one) is None or body == BODY


@pytest.mark.parametrize("holds", [True, False])
def test_a_file_of_another_car_or_for_another_plan_is_dropped_and_told_of_once(tmp_path: Path, holds: bool) -> None:
    path = keep(cache(tmp_path, DeviceSecret(b"t" * 32)))
    other = keep(cache(tmp_path), name="cd" * 32)
    other.rename(path.with_name(f"{'ef' * 32}.plan"))
    one = cache(tmp_path)
    with structlog.testing.capture_logs() as logged:
        for name in (NAME, "ef" * 32, NAME):
            assert (one.holds(name) if holds else read(one, name)) in {False, None}
    assert [line["event"] for line in logged] == ["plan_dropped", "plan_dropped"]
    assert "not of this device, for this name" in logged[0]["why"]
    assert list((tmp_path / "plans").iterdir()) == []


def test_a_plan_passes_for_no_timing_cache_of_another_name(tmp_path: Path) -> None:
    """Kinds are kept apart by their names, which are digests of what they are for."""
    package = a_package(tmp_path)
    assert timing_name(package, PLATFORM) != plan_name(package, PLATFORM, 2048)


@pytest.mark.parametrize("make", ["link", "folder", "pipe"])
def test_only_plain_files_are_read(tmp_path: Path, make: str) -> None:
    path = keep(cache(tmp_path))
    path.rename(tmp_path / "elsewhere")
    match make:
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "folder":
            path.mkdir()
        case _:
            os.mkfifo(path)
    assert read(cache(tmp_path)) is None


def test_what_changes_after_the_check_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest is of the memory that is handed on, and not of the file."""
    one = cache(tmp_path)
    path = keep(one)
    first = InputMemory.seal

    def seal(held: InputMemory) -> None:
        path.write_bytes(b"something else")
        first(held)

    monkeypatch.setattr(InputMemory, "seal", seal)
    assert read(one) == BODY


# --- the disk -------------------------------------------------------------------------------------------------


def test_those_used_longest_ago_make_room(tmp_path: Path) -> None:
    size = HEADER_BYTES + len(BODY)
    one = cache(tmp_path, max_bytes=3 * size)
    names = [f"{number:064x}" for number in range(4)]
    for second, name in enumerate(names[:3]):
        os.utime(keep(one, name=name), (second, second))
    assert read(one, names[0]) == BODY, "used now, so the second is the oldest"
    keep(one, name=names[3])
    assert [one.holds(name) for name in names] == [True, False, True, True]


def test_a_plan_larger_than_half_of_the_cache_costs_no_other(tmp_path: Path) -> None:
    one = cache(tmp_path, max_bytes=3 * (HEADER_BYTES + len(BODY)))
    keep(one)
    with pytest.raises(StoreError, match="more than half of what the cache may hold"):
        keep(one, bytes(2 * len(BODY)), "cd" * 32)
    assert one.holds(NAME)


def test_the_reserve_of_the_disk_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RESERVE_BYTES > 0
    monkeypatch.setattr(plans, "has_room", lambda *_: False)
    with pytest.raises(StoreError, match="the disk is nearly full"):
        keep(cache(tmp_path))
    assert list((tmp_path / "plans").iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_write_that_breaks_off_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    one = cache(tmp_path)
    keep(one)

    def refuse(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, refuse)
        with pytest.raises(StoreError, match="Input/output error"):
            keep(one, b"other")
    assert read(one) == BODY
    assert len(list((tmp_path / "plans").iterdir())) == 1


def test_what_a_power_cut_left_goes_in_time(tmp_path: Path) -> None:
    one = cache(tmp_path)
    path = keep(one)
    old, young = path.with_name(".old"), path.with_name(".young")
    for left in (old, young):
        left.write_bytes(b"half")
    os.utime(old, (1, 1))
    keep(one, name="cd" * 32)
    assert (old.exists(), young.exists()) == (False, True)


def test_a_folder_of_its_own_has_its_secret(tmp_path: Path) -> None:
    keep(open_cache(tmp_path / "state"))
    assert read(open_cache(tmp_path / "state")) == BODY
    assert (tmp_path / "state" / "device.secret").stat().st_mode & 0o777 == 0o600
    (tmp_path / "state" / "device.secret").unlink()
    assert read(open_cache(tmp_path / "state")) is None, "another secret, another device"


# --- names ----------------------------------------------------------------------------------------------------


def a_package(folder: Path, change: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> Package:
    path = folder / "package"
    if not path.exists():
        put(folder, "package")
    return rewrite_manifest(path, change)


REPLACE = msgspec.structs.replace
OTHERS: dict[str, Callable[[Manifest], Manifest]] = {
    "buckets": lambda one: REPLACE(one, buckets=(Bucket(items=2, width=320),)),
    "height": lambda one: REPLACE(one, buckets=(Bucket(items=1, width=320, height=32),)),
    "pipeline": lambda one: REPLACE(
        one,
        pipeline=PipelineSpec(pre=(OpCall(op="resize", params={"height": 9}),), engine="onnx", post=one.pipeline.post),
    ),
    "input": lambda one: REPLACE(one, input="tensor"),
    "precisions": lambda one: REPLACE(one, precisions={"float32": 200}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_of_a_package_changes_its_plan_changes_its_name(tmp_path: Path, what: str) -> None:
    before = plan_name(a_package(tmp_path), PLATFORM, 2048)
    assert plan_name(a_package(tmp_path, OTHERS[what]), PLATFORM, 2048) != before


def test_the_model_changes_its_name_and_the_packages_version_does_not(tmp_path: Path) -> None:
    before = plan_name(a_package(tmp_path), PLATFORM, 2048)
    assert plan_name(a_package(tmp_path, lambda one: REPLACE(one, version="2")), PLATFORM, 2048) == before
    (tmp_path / "package" / "model.onnx").write_bytes(b"another")
    assert plan_name(a_package(tmp_path), PLATFORM, 2048) != before


@pytest.mark.parametrize("field", wire.Platform.__struct_fields__)
def test_everything_of_the_platform_changes_the_name(tmp_path: Path, field: str) -> None:
    value = getattr(PLATFORM, field)
    other = REPLACE(PLATFORM, **{field: not value if isinstance(value, bool) else value * 2})
    package = a_package(tmp_path)
    assert plan_name(package, other, 2048) != plan_name(package, PLATFORM, 2048)
    assert timing_name(package, other) != timing_name(package, PLATFORM)


def test_the_builders_memory_and_settings_change_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = a_package(tmp_path)
    before = plan_name(package, PLATFORM, 2048)
    assert plan_name(package, PLATFORM, 4096) != before
    monkeypatch.setattr(plans, "BUILDER_SETTINGS", wire.BUILDER_SETTINGS + 1)
    assert plan_name(package, PLATFORM, 2048) != before
