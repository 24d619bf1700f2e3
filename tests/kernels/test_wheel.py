"""What a vehicle installs: the kernels' sources, and the compiled kernels when they were built before."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_holds_sources_and_compiled_kernels(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    leave_out = shutil.ignore_patterns("__pycache__", "compiled")
    shutil.copytree(ROOT / "kernels", tree / "kernels", ignore=leave_out)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree)
    (tree / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "build_time.py", tree / ".ci")
    for name in ("agent", "hil"):
        (tree / name).mkdir()
        (tree / name / "__init__.py").touch()
    compiled = tree / "kernels" / "compiled"
    compiled.mkdir()
    (compiled / "manifest.json").write_text("{}")
    (compiled / "a.fatbin").touch()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    here = {f"kernels/{path.name}" for path in (ROOT / "kernels").iterdir() if path.is_file()}
    assert {"kernels/common.cuh", "kernels/budgets.toml"} < here
    assert here | {"kernels/compiled/manifest.json", "kernels/compiled/a.fatbin", "agent/trust/built_s"} <= names
    assert not any(name.startswith("hil/") for name in names), "no rig is on a vehicle"
