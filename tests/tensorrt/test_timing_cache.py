"""The timing cache of `tensorrt`, over a simulated configuration: kept where it fits, begun anew where it does not."""

from __future__ import annotations

from typing import Any

import pytest

from agent.worker.executor import ExecutorError, UnavailableError
from agent.worker.tensorrt.builder import BuildOrder, _configure, _serialized
from agent.worker.tensorrt.subset import OPTIONAL, REQUIRED
from tests.onnx.writing import GOOD
from tests.tensorrt.simulated import World, simulated

HERE, FOREIGN, DAMAGED = b"measured here", b"measured elsewhere", b"\xff"


class Cache:
    def __init__(self, body: bytes) -> None:
        self.body = body

    def serialize(self) -> bytes | None:
        return None if self.body == b"mute" else self.body + b" and more"


class Config:
    """The part of IBuilderConfig that `_configure` uses; refuses like the library, by None and False."""

    def __init__(self, *, takes_none: bool = False) -> None:
        self.cache: Cache | None = None
        self.limits: dict[Any, int] = {}
        self.max_aux_streams = -1
        self.builder_optimization_level = -1
        self._takes_none = takes_none

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.limits[pool] = size

    def create_timing_cache(self, body: bytes) -> Cache | None:
        return None if body == DAMAGED else Cache(body)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch, "what was measured on another device is not to be used"
        if self._takes_none or cache.body == FOREIGN:
            return False
        self.cache = cache
        return True


def order(timing: bytes, compute_capability: str | None = None) -> BuildOrder:
    return BuildOrder(
        GOOD, "model.onnx", [{"x": (1, 4)}], 1 << 20, 2, timing=timing, compute_capability=compute_capability
    )


def configured(timing: bytes, config: Config) -> Any:
    flavour = simulated(World())
    flavour.trt.MemoryPoolType = type("MemoryPoolType", (), {"WORKSPACE": "workspace"})
    flavour.trt.BuilderFlag = type("BuilderFlag", (), {})  # the classic flavours have no flag that we set
    return _configure(order(timing), flavour, config)


def test_the_simulation_has_nothing_that_the_real_bindings_lack() -> None:
    shown = {name for name in (*vars(Config), *vars(Config())) if not name.startswith("_")} - {"cache", "limits"}
    assert shown <= {*REQUIRED["IBuilderConfig"], *OPTIONAL["IBuilderConfig"]}


def test_what_was_measured_here_is_used_and_comes_back_with_more() -> None:
    config = Config()
    cache = configured(HERE, config)
    assert config.cache is cache
    assert _serialized(simulated(World()), cache) == HERE + b" and more"
    assert (config.limits, config.max_aux_streams, config.builder_optimization_level) == ({"workspace": 1 << 20}, 0, 3)


@pytest.mark.parametrize("timing", [b"", FOREIGN, DAMAGED])
def test_what_does_not_belong_here_gives_way_to_a_new_one(timing: bytes) -> None:
    config = Config()
    assert configured(timing, config).body == b""
    assert config.cache is not None


def test_a_library_that_takes_none_is_an_error() -> None:
    with pytest.raises(ExecutorError, match="makes no timing cache"):
        configured(HERE, Config(takes_none=True))


def test_a_cache_that_cannot_be_kept_is_an_error() -> None:
    with pytest.raises(ExecutorError, match="does not give its timing cache"):
        _serialized(simulated(World()), Cache(b"mute"))


def test_this_flavour_builds_only_for_the_device_that_is_here() -> None:
    flavour = simulated(World())
    flavour.trt.MemoryPoolType = type("MemoryPoolType", (), {"WORKSPACE": "workspace"})
    flavour.trt.BuilderFlag = type("BuilderFlag", (), {})  # the classic flavours have no flag that we set
    with pytest.raises(UnavailableError, match=r"not for any 8\.6; build on the device itself"):
        _configure(order(b"", "8.6"), flavour, Config())
