"""Which TensorRT: the configured flavour is imported when it is needed, and held against what we need of it.

`tensorrt` is what a Jetson or a server has; `tensorrt_rtx` is its sibling for RTX cards, with the same interface and
a builder that compiles in seconds. Distributions differ in the module's name: the bindings alone work as well. There is
no falling back from one flavour to the other, or to a version that was never tried.

What is missing is told in one sentence with what to do about it (UnavailableError): it ends up in `driveway doctor`.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.worker.executor import UnavailableError
from agent.worker.tensorrt.journal import Journal, printable
from agent.worker.tensorrt.subset import missing

MODULES: Mapping[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
TITLES: Mapping[str, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
VERSIONS: Mapping[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "tensorrt": ((10, 3), (12, 0)),
    "tensorrt_rtx": ((1, 6), (2, 0)),
}
"""From the oldest release that was tried, up to the next major one, which may drop what we use.

TensorRT-RTX 1.4 has all the names too, but nobody built a plan with it or with 1.5: names are not behaviour.
"""

DTYPES: Mapping[str, str] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
"""TensorRT's names for what may go in and come out, as NumPy names it. NumPy has no bfloat16, 8-bit or 4-bit floats."""


@dataclass(frozen=True)
class Flavour:
    """TensorRT's bindings as imported: `trt` is the module, `journal` hears what the library says."""

    name: str
    version: str
    trt: Any
    journal: Journal

    @property
    def title(self) -> str:
        """`TensorRT 10.3.0`."""
        return f"{TITLES[self.name]} {self.version}"

    @property
    def has_timing_cache(self) -> bool:
        """Whether builds become quicker by what earlier ones measured; TensorRT-RTX keeps the calls, without effect."""
        return self.name == "tensorrt"

    def network_flags(self) -> int:
        """Flags of a network whose precision is the model's own: an option first, since 11.0 the only kind there is."""
        trt = self.trt
        if not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
            return 0
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def made(self, kind: str) -> Any:
        """A Runtime or a Builder with our logger, still without a recorder; raises UnavailableError."""
        try:
            return getattr(self.trt, kind)(self.journal.logger)
        except (TypeError, RuntimeError) as error:  # the library gave a null pointer instead of an object
            raise UnavailableError(
                f"{self.title} cannot start: {self.journal.words('it does not say why')}",
                hint="check with `nvidia-smi` or `tegrastats` that the accelerator's driver works",
            ) from error


def compute_capability(flavour: Flavour, wanted: str) -> Any:
    """TensorRT-RTX's name for a compute capability such as `8.6`, None where it does not serve it."""
    return getattr(flavour.trt.ComputeCapability, f"SM{wanted.replace('.', '')}", None)


def check_device(flavour: Flavour, device: str, capability: str) -> None:
    """Raise UnavailableError when the flavour says by itself that it does not serve a device of this capability."""
    if hasattr(flavour.trt, "ComputeCapability") and compute_capability(flavour, capability) is None:
        raise UnavailableError(
            f"{flavour.title} does not serve {device}, which has compute capability {capability}",
            hint='use the executor "tensorrt" on this device',
        )


_opened: dict[str, Flavour] = {}


def open_flavour(name: str) -> Flavour:
    """The flavour called `tensorrt` or `tensorrt_rtx`, imported once in a process; raises UnavailableError."""
    if name not in _opened:
        _opened[name] = _open(name, _imported(name))
    return _opened[name]


def _open(name: str, trt: Any) -> Flavour:
    """The bindings `trt` as a flavour, when they are of a version that has what we need."""
    version = str(getattr(trt, "__version__", "unknown"))
    parts = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", version)
    first, end = VERSIONS[name]
    wanted = f"{first[0]}.{first[1]} or newer, before {end[0]}.{end[1]}"
    if parts is None or not first <= (int(parts[1]), int(parts[2])) < end:
        raise UnavailableError(f"{TITLES[name]} {version} is not supported", hint=f"install {wanted}")
    lacking = missing(trt)
    if lacking:
        raise UnavailableError(
            f"{TITLES[name]} {version} lacks {', '.join(lacking[:5])}", hint=f"install another release ({wanted})"
        )
    return Flavour(name, version, trt, Journal(trt))


def _imported(name: str) -> Any:
    """The bindings' module under whichever name they are installed; raises UnavailableError."""
    for module in MODULES[name]:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name not in MODULES[name]:
                raise UnavailableError(
                    f"{TITLES[name]} cannot be imported: {error.name} is missing", hint="install it again"
                ) from error
        except (ImportError, OSError) as error:  # OSError: a library that ctypes was to load
            raise UnavailableError(
                f"{TITLES[name]}'s bindings are here, but not all of its libraries: {printable(str(error))}",
                hint="install the libraries of the same version, and the accelerator's driver",
            ) from error
    raise UnavailableError(
        f"{TITLES[name]} is not installed for {sys.executable}",
        hint="install it, or name the interpreter that has it as `worker_python` under [inference]",
    )
