"""Single values that the store remembers over restarts, each under a name; part of `agent.store.Store`."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from agent.errors import NotUnderstoodError
from agent.store_reader import StoreReader

Row = TypeVar("Row", bound=msgspec.Struct)


class StoreMemory(StoreReader):
    """Use on the store's thread alone."""

    def recall(self, name: str, kind: type[Row]) -> Row | None:
        """What was remembered under this name; raises NotUnderstoodError for what this version does not understand."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (name,)).fetchone()
        try:
            return None if row is None else msgspec.json.decode(row[0], type=kind)
        except msgspec.MsgspecError as error:
            raise NotUnderstoodError(
                f"what the store remembers as {name!r} is not understood: {error}",
                hint="another version of the agent wrote it, or the file is damaged: restore a copy of driveway.db",
            ) from error

    def remember(self, name: str, value: msgspec.Struct) -> None:
        """Remember one value over restarts, in one transaction; it replaces an older one."""
        text = msgspec.json.encode(value).decode("utf-8")
        self._db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (name, text))

    def forget(self, name: str) -> None:
        """Forget what was remembered under this name."""
        self._db.execute("DELETE FROM meta WHERE key = ?", (name,))
