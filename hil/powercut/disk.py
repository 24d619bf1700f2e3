"""What a disk may hold after the power went: the model, and its images.

Operations are applied one after the other (`Disk.apply`). What is not durable yet may be there or not, in these ways:

* Bytes that were written and not synced persist in any subset of the file's 512-byte sectors; a sector is never torn in
  itself, and bytes beside it are never harmed. A file may have grown by zeros where the sectors that made it grow did
  not persist.
* Names and lengths (creation, removal, renaming, truncation) persist in their order: any number of the oldest, as in
  the journal of ext4. A sync makes those durable that came before the last one to touch what is synced, and no more.
* A sync that failed lets go of what it should have written, page by page of 4096 bytes: it may persist or not, and no
  later sync helps, until something is written into the same page again. It stays readable, which is the trap.

Not modelled: sectors that hold garbage, disks that lie about a flush, more than one process.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from hil.powercut.recorder import Operation

SECTOR_BYTES = 512
PAGE_BYTES = 4096
EXHAUSTIVE = 32
"""Where there are no more ways than this to lose power, all are tried."""

Image = dict[str, bytes]
"""The files of the folder by their names."""


@dataclass(eq=False)
class Change:
    """One change that is not durable: of bytes (W, within a page), of a length (T), or of a name (C, L, U, R)."""

    kind: str
    inode: int
    offset: int = 0
    data: bytes = b""
    name: str = ""
    to: str = ""
    grows: bool = False
    forgotten: bool = False

    @property
    def is_data(self) -> bool:
        """Whether it is written back, and not journaled."""
        return self.kind == "W"

    def touches(self, inode: int | None) -> bool:
        """Whether syncing this file (None: the folder) has to make it durable."""
        if inode is None:
            return self.kind in {"C", "L", "U", "R"}
        return self.inode == inode and (not self.is_data or self.grows)

    def sectors(self) -> list[tuple[int, int]]:
        """Where it begins and ends in each sector that it touches."""
        end, found, start = self.offset + len(self.data), list[tuple[int, int]](), self.offset
        while start < end:
            stop = min((start // SECTOR_BYTES + 1) * SECTOR_BYTES, end)
            found.append((start, stop))
            start = stop
        return found


@dataclass
class Tree:
    """Names and what they hold."""

    names: dict[str, int] = field(default_factory=dict)
    files: dict[int, bytearray] = field(default_factory=dict)

    def take(self, change: Change, part: tuple[int, int] | None = None) -> None:
        """Make a change, or the part of a change of bytes from one offset to another."""
        match change.kind:
            case "C":
                self.names[change.name] = change.inode
            case "L":
                self.names[change.name] = change.inode
                self.files[change.inode] = bytearray(change.data)
            case "U":
                self.names.pop(change.name, None)
            case "R":
                self.names.pop(change.name, None)
                self.names[change.to] = change.inode
            case "T":
                self.grow(change.inode, change.offset)
                del self.files[change.inode][change.offset :]
            case _:
                start, end = part or (change.offset, change.offset + len(change.data))
                self.grow(change.inode, start)
                self.files[change.inode][start:end] = change.data[start - change.offset : end - change.offset]

    def grow(self, inode: int, length: int) -> None:
        """Make a file at least so long."""
        file = self.files.setdefault(inode, bytearray())
        file.extend(bytes(max(0, length - len(file))))

    def image(self) -> Image:
        """The files that have a name; SQLite's shared memory is nothing that outlives a power cut."""
        return {
            name: bytes(self.files.get(inode, b""))
            for name, inode in self.names.items()
            if name and not name.endswith("-shm")
        }


class Disk:
    """What is durable, and what is not yet."""

    def __init__(self) -> None:
        self._durable = Tree()
        self._now = Tree()
        self._pending: list[Change] = []
        self._inodes: dict[str, int] = {}
        self._made = 0

    def apply(self, operation: Operation) -> None:
        """One operation more; a note changes nothing."""
        inode = self._inodes.get(operation.name, -1)
        match operation.kind:
            case "C":
                self._made += 1
                self._inodes[operation.name] = self._made
                self._change(Change("C", self._made, name=operation.name))
            case "L":  # a link is its own content, and is journaled with its name
                self._made += 1
                self._inodes[operation.name] = self._made
                self._change(Change("L", self._made, name=operation.name, data=operation.data))
            case "U":
                self._change(Change("U", inode, name=operation.name))
            case "R":
                to = operation.data.decode()
                self._inodes[to] = inode
                self._change(Change("R", inode, name=operation.name, to=to))
            case "T":
                self._change(Change("T", inode, operation.offset))
            case "W":
                self._write(inode, operation.offset, operation.data)
            case "S" | "D":
                self._sync(inode if operation.name else None)
            case "F":
                for change in self._pending:
                    change.forgotten |= change.is_data and change.inode == inode
            case _:
                pass

    def now(self) -> Image:
        """What a reader sees."""
        return self._now.image()

    def _change(self, change: Change) -> None:
        self._now.take(change)
        self._pending.append(change)

    def _write(self, inode: int, offset: int, data: bytes) -> None:
        start, end = offset, offset + len(data)
        while start < end:
            page = start // PAGE_BYTES
            stop = min((page + 1) * PAGE_BYTES, end)
            for change in self._pending:
                if change.forgotten and change.inode == inode and change.offset // PAGE_BYTES == page:
                    change.forgotten = False  # it is in a page that is dirty again
            grows = stop > len(self._now.files.get(inode, b""))
            self._change(Change("W", inode, start, data[start - offset : stop - offset], grows=grows))
            start = stop

    def _sync(self, inode: int | None) -> None:
        last = max((place for place, change in enumerate(self._pending) if change.touches(inode)), default=-1)
        kept = list[Change]()
        for place, change in enumerate(self._pending):
            durable = (change.inode == inode and not change.forgotten) if change.is_data else place <= last
            if not durable:
                kept.append(change)
                continue
            self._durable.take(change)
            if change.kind == "T":
                kept = [one for one in kept if not _is_cut_off(one, change)]
        self._pending = kept

    # --- after the power went -------------------------------------------------------------------------------------

    def images(self, chance: random.Random, samples: int) -> Iterator[Image]:
        """What the disk may hold if the power goes now: everything where that is little, else a sample."""
        data = [(change, part) for change in self._pending if change.is_data for part in change.sectors()]
        order = sum(not change.is_data for change in self._pending)
        if len(data) < EXHAUSTIVE.bit_length() and (order + 1) * 2 ** len(data) <= EXHAUSTIVE:
            for journaled in range(order + 1):
                for chosen in product((False, True), repeat=len(data)):
                    yield self._image(journaled, chosen, grown=False)
            return
        everything, nothing = (True,) * len(data), (False,) * len(data)
        yield self._image(0, nothing, grown=False)
        yield self._image(order, everything, grown=False)
        for number in range(samples):
            journaled = chance.choice((0, order, chance.randint(0, order)))
            share = (0.5, 0.9, 0.1)[number % 3]
            chosen = tuple(chance.random() < share for _ in data)
            if number % 4 == 3:  # all but one, or none but one
                one = chance.randrange(len(data)) if data else 0
                missing = chance.random() < 0.5
                chosen = tuple((place == one) != missing for place in range(len(data)))
            yield self._image(journaled, chosen, grown=chance.random() < 0.3)

    def _image(self, journaled: int, chosen: tuple[bool, ...], *, grown: bool) -> Image:
        tree = Tree(dict(self._durable.names), {inode: bytearray(all_) for inode, all_ in self._durable.files.items()})
        order, place = 0, 0
        for change in self._pending:
            if not change.is_data:
                order += 1
                if order <= journaled:
                    tree.take(change)
                continue
            for part in change.sectors():
                if chosen[place]:
                    tree.take(change, part)
                elif grown:
                    tree.grow(change.inode, part[1])
                place += 1
        return tree.image()


def _is_cut_off(change: Change, cut: Change) -> bool:
    """Whether bytes that are not durable lay behind a cut that is."""
    return change.is_data and change.inode == cut.inode and change.offset >= cut.offset
