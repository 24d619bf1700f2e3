"""The entry points that `cuda.h` declares, and a library that has every one of them.

Two libraries are made from the list. The link stub lets pycuda be linked on a machine without a driver; each of its
functions says CUDA_ERROR_STUB_LIBRARY and none is ever called. The rest of the stand-in driver says
CUDA_ERROR_NOT_SUPPORTED for all that the stand-in does not implement, and counts the call under its name.

    python -m tests.cuda.driver.entry_points CUDA_INCLUDE_DIRECTORY FOLDER      makes FOLDER/libcuda.so
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

STUB_LIBRARY = 34
RESULT = re.compile(r"(CUDA_\w+)\s*=\s*(\d+)")
DECLARATION = re.compile(r"CUresult\s+(?:__stdcall\s+)?(cu[A-Z]\w*)\s*\(")


def headers(include: Path) -> str:
    """The driver API's headers, preprocessed: names with the `_v2` suffixes that the linker sees."""
    files = ["-include", "cuda.h", "-include", "cudaProfiler.h"]
    command = ["gcc", "-E", "-P", "-I", str(include), *files, "-x", "c", "/dev/null"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def entry_points(headers_text: str) -> list[str]:
    """Names of all functions that the headers declare, sorted."""
    return sorted(set(DECLARATION.findall(headers_text)))


def error_names(headers_text: str) -> str:
    """The results by number, as C initialisers."""
    listed = headers_text.partition("typedef enum cudaError_enum")[2].partition("}")[0]
    return "".join(f'{{{code}, "{name}"}},\n' for name, code in RESULT.findall(listed))


def link_stub(names: Iterable[str]) -> str:
    """C source of a library to link against, never to run."""
    return "".join(f"int {name}(void) {{ return {STUB_LIBRARY}; }}\n" for name in names)


def unsupported(names: Iterable[str]) -> str:
    """C source of entry points that count their call and say CUDA_ERROR_NOT_SUPPORTED."""
    bodies = (f'int {name}(void) {{ return standin_unsupported("{name}"); }}\n' for name in names)
    return "int standin_unsupported(const char *name);\n" + "".join(bodies)


def main() -> int:
    """Make the link stub."""
    include, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "stub.c"
    source.write_text(link_stub(entry_points(headers(include))))
    part = folder / "libcuda.so.part"
    flags = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["gcc", *flags, "-o", str(part), str(source)], check=True)
    part.replace(folder / "libcuda.so")
    return 0


if __name__ == "__main__":
    sys.exit(main())
