"""Recipes for inference packages: each builds a package directory from a public model.

Recipes load an engine, so they are imported only when one is built.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.package import Package

RECIPES = ("ocr", "orientation", "detector")
"""What `driveway-hil package` builds by name: the modules here, each with its `build_…_package`."""


def build_named(name: str, folder: Path) -> Package:
    """Build one of `RECIPES` into `folder` (made when missing, must be empty); raises PackageError."""
    package: Package = getattr(import_module(f"hil.packages.{name}"), f"build_{name}_package")(folder)
    return package
