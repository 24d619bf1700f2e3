"""cantools' reader of DBC files, and nothing else of cantools.

Importing cantools imports all of it, and with it python-can, which can write to a bus. A vehicle has no such library
(`.ci/vehicle-overrides.txt`), and the reader needs none. So where python-can is not installed, the package's own
`__init__` is passed over; where it is, as beside the rigs' simulated car, cantools is imported as it comes.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec


def _pass_over_init(name: str) -> None:
    """Have submodules of an installed package imported without running the package's `__init__`."""
    found = find_spec(name)
    if found is None or name in sys.modules:
        return
    bare = ModuleSpec(name, None, is_package=True)
    bare.submodule_search_locations = found.submodule_search_locations
    sys.modules[name] = module_from_spec(bare)


if find_spec("can") is None:
    _pass_over_init("cantools")

from cantools.database import load_string  # noqa: E402 - after what it must not bring with it
from cantools.database.can import Database, Message, Signal  # noqa: E402
from cantools.database.errors import Error as DatabaseError  # noqa: E402

__all__ = ["Database", "DatabaseError", "Message", "Signal", "load_string"]
