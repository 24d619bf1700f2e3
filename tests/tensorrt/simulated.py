"""A TensorRT runtime without a GPU: the part of its interface that our engine uses, with its ways of failing.

It is held against the table of names that the real bindings are held against (`test_engine`), and answers like the
library: False, None or 0 with a word to the error recorder, never an exception (but for `infer_shapes`). A plan is
JSON. What must not be done in the order in which it was done fails an assertion.
"""

from __future__ import annotations

import enum
import json
from types import SimpleNamespace
from typing import Any

from agent.worker.tensorrt.flavour import Flavour
from agent.worker.tensorrt.journal import Journal

VERSION = "10.3.0"
ANY = -1


def plan(**changes: Any) -> bytes:
    """A plan of a model with one free size: `image` 3x48xW to `scores` and, of a fixed size, `flags`."""
    whole: dict[str, Any] = {
        "version": VERSION,
        "tensors": {
            "image": {"mode": "INPUT", "dtype": "FLOAT", "shape": [ANY, 3, 48, ANY]},
            "mask": {"mode": "INPUT", "dtype": "BOOL", "shape": [4]},
            "scores": {"mode": "OUTPUT", "dtype": "HALF", "shape": [ANY, 10]},
            "flags": {"mode": "OUTPUT", "dtype": "INT64", "shape": [2]},
        },
        "profiles": [{"image": [1, 3, 48, 320]}, {"image": [8, 3, 48, 320]}, {"image": [8, 3, 48, 640]}],
        "scratch_bytes": 4096,
    }
    return json.dumps(whole | changes).encode()


class World:
    """What happened, and which of the library's calls fail."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}
        """Method, or `method:words` -> the error code with which it fails."""
        self.ran: list[tuple[int, dict[str, int]]] = []
        """The stream of each run, and the addresses it was run with."""
        self.synchronized = 0
        self.pending_profile = False
        self.configs: list[RuntimeConfig] = []

    def synchronize(self) -> None:
        self.synchronized += 1
        self.pending_profile = False


def simulated(world: World, name: str = "tensorrt") -> Flavour:
    """The flavour, over a library that works as `world` says."""
    objects: dict[str, Any] = {kind.__name__: type(kind.__name__, (kind,), {"world": world}) for kind in OBJECTS}
    trt = SimpleNamespace(**objects, **ENUMERATIONS, ILogger=ILogger, IErrorRecorder=IErrorRecorder)
    if name == "tensorrt_rtx":
        trt.DynamicShapesKernelSpecializationStrategy = Specialization
        trt.ICudaEngine.create_runtime_config = _create_runtime_config
    for kind in objects.values():
        kind.trt = trt
    return Flavour(name, VERSION, trt, Journal(trt))


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)


class IErrorRecorder:
    pass


class ErrorCodeTRT(enum.Enum):
    UNSPECIFIED_ERROR = 1
    INVALID_ARGUMENT = 3
    FAILED_ALLOCATION = 5


DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT64", "BOOL", "BF16"])
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
Strategy = enum.Enum("Strategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"])
Specialization = enum.Enum("Specialization", ["LAZY", "EAGER", "NONE"])
ENUMERATIONS: dict[str, Any] = {
    "TensorIOMode": TensorIOMode,
    "TensorLocation": TensorLocation,
    "ExecutionContextAllocationStrategy": Strategy,
}


class Base:
    """An object of the library: fails where the world says so, and tells its recorder."""

    world: World
    trt: Any
    error_recorder: Any = None

    def _fails(self, method: str) -> bool:
        for told, code in self.world.broken.items():
            name, _, words = told.partition(":")
            if name == method:
                self._report(code, f"Error Code 3: {words or method + ' was told to fail'}")
                return True
        return False

    def _report(self, code: str, text: str) -> None:
        assert self.error_recorder is not None, "errors of this object would be lost"
        self.error_recorder.report_error(ErrorCodeTRT[code], text)


class RuntimeConfig:
    """How a context is to be made (TensorRT-RTX)."""

    def __init__(self) -> None:
        self.strategy: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


def _create_runtime_config(engine: Any) -> RuntimeConfig:
    config = RuntimeConfig()
    engine.world.configs.append(config)
    return config


class Runtime(Base):
    engine_host_code_allowed = True

    def __init__(self, logger: Any) -> None:
        if "Runtime" in self.world.broken:
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, body: Any) -> Any:
        assert not self.engine_host_code_allowed
        try:
            found = json.loads(bytes(body))
        except ValueError:
            self._report("INVALID_ARGUMENT", "the magic tag does not match")
            return None
        if found["version"] != VERSION:
            self._report("INVALID_ARGUMENT", f"the plan is of version {found['version']}, expecting {VERSION}")
            return None
        return None if self._fails("deserialize_cuda_engine") else self.trt.ICudaEngine(found, self.error_recorder)


class ICudaEngine(Base):
    def __init__(self, found: dict[str, Any], recorder: Any) -> None:
        self._found = found
        self._tensors: dict[str, Any] = found["tensors"]
        self.error_recorder = recorder

    num_io_tensors = property(lambda self: len(self._tensors))
    num_optimization_profiles = property(lambda self: len(self._found["profiles"]))

    def get_tensor_name(self, place: int) -> str:
        return list(self._tensors)[place]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode[self._tensors[name]["mode"]]

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[self._tensors[name]["dtype"]]

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation[self._tensors[name].get("location", "DEVICE")]

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self._tensors[name]["shape"])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        return [self._found["profiles"][profile].get(name, [])] * 3

    def create_execution_context(self, how: Any) -> Any:
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        assert strategy == Strategy.USER_MANAGED
        return None if self._fails("create_execution_context") else self.trt.IExecutionContext(self._found)


class IExecutionContext(Base):
    def __init__(self, found: dict[str, Any]) -> None:
        self._found = found
        self._profile: dict[str, list[int]] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if self._fails("set_optimization_profile_async"):
            return False
        self._profile = self._found["profiles"][profile]
        self.world.pending_profile = True
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None
        if self._fails("set_input_shape"):
            return False
        wanted: list[int] = self._profile.get(name, self._found["tensors"][name]["shape"])
        self._shapes[name] = shape
        return list(shape) == wanted

    def infer_shapes(self) -> list[str]:
        if "infer_shapes raises" in self.world.broken:
            raise RuntimeError("shape inference failed")
        if self._fails("infer_shapes"):
            return ["image"]
        inputs = [name for name, one in self._found["tensors"].items() if one["mode"] == "INPUT"]
        return [name for name in inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> list[int]:
        rows = self._shapes["image"][0]
        shape = self._found["tensors"][name]["shape"]
        return [rows if size == ANY and not axis else size for axis, size in enumerate(shape)]

    def update_device_memory_size_for_shapes(self) -> int:
        return 0 if self._fails("update_device_memory_size_for_shapes") else self._found["scratch_bytes"]

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self._fails("set_tensor_address"):
            return False
        self._addresses[name] = address
        return True

    def set_device_memory(self, address: int, length: int) -> None:
        if not self._fails("set_device_memory"):
            self._scratch = (address, length)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream, "the default stream waits for all others"
        assert not self.world.pending_profile, "nobody waited for the profile"
        assert self._scratch == (0x1000, self._found["scratch_bytes"]) or not self._found["scratch_bytes"]
        if self._fails("execute_async_v3"):
            return False
        self.world.ran.append((stream, dict(self._addresses)))
        return True


OBJECTS: tuple[Any, ...] = (Runtime, ICudaEngine, IExecutionContext)
