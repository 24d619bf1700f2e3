"""What a submission was, so that its answers can be collected later: which files went into which job.

The dispatcher knows jobs and numbers of items, never the names of files: those stay on the machine that sent them, in
`$XDG_STATE_HOME/driveway/submissions/{submission}.jsonl` (`~/.local/state/…`). The first line says what was submitted
where; then comes a line a job, written before the job is put up, and at the end one that says that this was all. So a
submission that was broken off anywhere can be collected as far as it came. The newest few hundred are kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from agent.errors import ConfigError
from hil.submit.endpoint import Endpoint

NAME = re.compile(r"[a-z0-9]{4,32}")
MOST_KEPT = 500
MOST_BYTES_KEPT = 1024**3


class Heading(msgspec.Struct, frozen=True, kw_only=True, tag="submission"):
    """The first line."""

    submission: str
    endpoint: Endpoint
    package: str
    package_sha256: str
    files: int
    price_micro_per_item: int
    currency: str


class JobFiles(msgspec.Struct, frozen=True, kw_only=True, tag="job"):
    """The files of one job, in the order of its items."""

    number: int
    files: tuple[str, ...]


class Complete(msgspec.Struct, frozen=True, kw_only=True, tag="complete"):
    """The last line."""

    jobs: int
    files: int


Line = Heading | JobFiles | Complete


class Writer:
    """Writes a record, a line at a time, each on the disk before its job is put up. Use as a context manager."""

    def __init__(self, folder: Path, heading: Heading) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _make_room(folder)
            self._file: BinaryIO = (folder / f"{heading.submission}.jsonl").open("xb")
        except OSError as error:
            raise ConfigError(
                f"cannot note the submission in {folder}: {error.strerror}", hint="set XDG_STATE_HOME to another folder"
            ) from error
        self.add(heading)

    def add(self, line: Line) -> None:
        """One more line."""
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Record:
    """A record that was written; a last line that is broken off does not count."""

    def __init__(self, folder: Path, submission: str) -> None:
        path = folder / f"{submission}.jsonl"
        if not NAME.fullmatch(submission) or not path.is_file():
            hint = "collect it where, and as the user that, it was submitted"
            raise ConfigError(f"no submission {submission!r} is noted in {folder}", hint=hint)
        self._path = path
        self.jobs = self.files = 0
        self.complete = False
        heading: Heading | None = None
        for line in self._lines():
            match line:
                case Heading():
                    heading = line
                case JobFiles():
                    self.jobs += 1
                    self.files += len(line.files)
                case Complete():
                    self.complete = True
        if heading is None:
            raise ConfigError(f"{path} is damaged", hint="it cannot be collected with file names")
        self.heading = heading

    def job_files(self) -> Iterator[JobFiles]:
        """The jobs, in order; read as they are asked for."""
        return (line for line in self._lines() if isinstance(line, JobFiles))

    def _lines(self) -> Iterator[Line]:
        decoder = msgspec.json.Decoder(Line)
        with self._path.open("rb") as file:
            for line in file:
                try:
                    yield decoder.decode(line)
                except msgspec.DecodeError:
                    return


def _make_room(folder: Path) -> None:
    """Drop the oldest records beyond so many, and so many bytes; raises OSError."""
    newest_first = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*.jsonl"))[::-1]
    size = 0
    for number, (_, bytes_, path) in enumerate(newest_first, 2):  # the first is the one that is to come
        size += bytes_
        if number > MOST_KEPT or size > MOST_BYTES_KEPT:
            path.unlink(missing_ok=True)


def record_folder() -> Path:
    """Where records are kept."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "driveway" / "submissions"
