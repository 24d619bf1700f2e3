"""Offline: the store in the state folder is of a version that this agent works on.

It is looked at through a connection that only reads, for the newest word on its version may be in its log. A daemon
that has it open is not disturbed.
"""

from __future__ import annotations

import contextlib
import sqlite3

from agent.cli.doctor.model import Finding, fail, missing, ok
from agent.config import Config
from agent.errors import NotUnderstoodError
from agent.schema import check_known, version_of

NAME = "state.schema"
BUSY_S = 5.0
_NOT_OURS = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY})


def store(config: Config) -> Finding:
    """Neither from a version that this one must not write after, nor no database at all."""
    path = config.path(config.state_dir) / "driveway.db"
    try:
        if not path.exists():
            return missing(NAME, f"{path} is not there yet: the daemon makes it")
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)) as db:
            check_known(db)
            return ok(NAME, f"{path} is of version {version_of(db)}")
    except NotUnderstoodError as error:
        return fail(NAME, error.what, error.hint)
    except PermissionError as error:
        return missing(NAME, f"{path} is not this user's to read: {error.strerror}")
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_OURS:
            return missing(NAME, f"{path} is not this user's to read: {error}")
        return fail(NAME, f"{path} is damaged: {error}", "restore a copy of driveway.db, or enrol this unit anew")
