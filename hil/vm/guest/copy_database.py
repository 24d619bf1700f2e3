#!/usr/bin/python3
"""In the vehicle: a whole copy of the agent's database, as of one moment, whether the agent works or not.

copy_database.py DATABASE COPY
"""

import contextlib
import sqlite3
import sys
from pathlib import Path

source, copy = sys.argv[1:]
Path(copy).unlink(missing_ok=True)
with contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as database:
    database.execute("VACUUM INTO ?", (copy,))
