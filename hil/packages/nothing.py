"""The package that does nothing but goes all the way: eight bytes in, the same eight bytes out.

Everything around a model's work is there: a signed package, a real ONNX model (one `Identity`), the engine, a golden
vector, answers, digests, statements. What a lease of it costs is what leasing costs, which `driveway-hil bench leases`
measures and which no other package shows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agent.onnx.check import Port
from agent.package import Package
from hil.packages.onnx_model import make_model
from hil.packages.tensors import item_of, package_model

NAME = "nothing"


def build_nothing_package(folder: Path) -> Package:
    """Write the package into `folder` (made when missing, must be empty) and open it; raises PackageError."""
    model = make_model("Identity", [Port("x", "int64", (None,))], [Port("y", "int64", (None,))])
    golden = [nothing_item(number) for number in (0, -1, 2**62)]
    return package_model(model, folder, name=NAME, version="1.0.0", golden=golden, where="the Identity model")


def nothing_item(number: int) -> bytes:
    """An item whose answer is this number."""
    return item_of([np.array(number, dtype=np.int64)])
