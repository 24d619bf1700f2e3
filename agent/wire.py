"""The frames between the daemon and its worker: length-prefixed msgpack of tagged structs, without I/O.

A frame is four bytes of big-endian length (at most 1 MiB) and that many bytes of msgpack. Bulk does not travel here:
a job's input crosses as a sealed memfd, whose descriptor rides (SCM_RIGHTS) with the `Input` frame, as a msgpack
array of byte strings, one an item. Neither side trusts the other: what is too long, unknown or out of range is a
WireError, and the side that sees one gives the other up.

The order is Hello; Load, then Loaded or Refused; then any number of Input and Run, answered in order; Pace at any
time; Stop, then Idle and the end of the process.
"""

from __future__ import annotations

import struct
from typing import Annotated, Generic, TypeVar, Union

import msgspec

from agent.errors import WorkerError

VERSION = 1
MAX_FRAME_BYTES = 1024 * 1024
_LENGTH = struct.Struct(">I")

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Detail = Annotated[str, msgspec.Meta(max_length=2048)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class WireError(WorkerError):
    """Bytes that are not a frame, or a frame that may not come now."""


class _Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Both ends come from the same release, so an unknown field is damage and not a newer peer."""


# --- daemon to worker -----------------------------------------------------------------------------------------


class Load(_Frame, frozen=True, tag=True):
    """Load the package in the directory `path`, once in a process; answered by Loaded or Refused."""

    path: Annotated[str, msgspec.Meta(max_length=4096)]
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)]
    memory_mb: Annotated[int, msgspec.Meta(ge=64, le=1_048_576)]


class Input(_Frame, frozen=True, tag=True):
    """A job's input of `items` items comes in the memfd sent with this frame; it replaces the one before."""

    items: Count
    bytes: Count


class Run(_Frame, frozen=True, tag=True):
    """Compute items [first, last) of the input as slice `index`; answered by SliceDone or SliceError."""

    index: Count
    first: Count
    last: Count


class Pace(_Frame, frozen=True, tag=True):
    """Compute for `duty_permille` thousandths of the time from now on; 0 pauses."""

    duty_permille: Annotated[int, msgspec.Meta(ge=0, le=1000)]


class Stop(_Frame, frozen=True, tag=True):
    """Finish the micro-batch in flight, drop the slice, answer Idle, free everything and exit."""


# --- worker to daemon -----------------------------------------------------------------------------------------


class Hello(_Frame, frozen=True, tag=True):
    """The first frame: the worker is up and speaks `version` of this wire."""

    pid: Count
    version: Count


class Loaded(_Frame, frozen=True, tag=True):
    """The package is loaded and its golden vector came out right.

    `micro_batch_ms` is the longest measured engine run of the buckets in use: what a vacate waits for.
    """

    executor: Annotated[str, msgspec.Meta(max_length=64)]
    device: Annotated[str, msgspec.Meta(max_length=256)]
    micro_batch_ms: Annotated[float, msgspec.Meta(ge=0)]
    package_sha256: Sha256
    kernels_sha256: Sha256


class Refused(_Frame, frozen=True, tag=True):
    """The package must not run, and why; the worker exits."""

    detail: Detail


class Progress(_Frame, frozen=True, tag=True):
    """`done` items of slice `index` are computed; the first micro-batch says so, later ones a few times a second."""

    index: Count
    done: Count


class SliceDone(_Frame, frozen=True, tag=True):
    """A finished slice.

    `output` is the JSON array of the items' answers in order (compact, sorted keys, ASCII), `output_sha256` its
    digest. An answer is `{"text", "confidence_permille"}` or `{"outputs"}`; `{"error"}` for an item that was no good.
    `raw_sha256` is SHA-256 over the concatenated 32-byte digests of the items in order; an item's digest is SHA-256
    over the header `{dtype}[{d0},{d1},…]` in ASCII, one newline, and the item's engine output as little-endian bytes
    in C order (several outputs one after the other, each with its header); an item that was not computed has the
    header `none[]` and no bytes. `raw_shape` is one item's shape,
    with -1 where items differ; it is empty, and `raw_dtype` is `none`, when no item was computed. Of several outputs
    no shape is given, and `raw_dtype` is `mixed` where they differ.
    """

    index: Count
    items: Count
    failed_items: Count
    output: bytes
    output_sha256: Sha256
    raw_sha256: Sha256
    raw_dtype: Annotated[str, msgspec.Meta(max_length=16)]
    raw_shape: Annotated[tuple[int, ...], msgspec.Meta(max_length=8)]
    compute_ms: Count


class SliceError(_Frame, frozen=True, tag=True):
    """A slice could not be computed; the worker goes on."""

    index: Count
    detail: Detail


class Idle(_Frame, frozen=True, tag=True):
    """The worker has stopped computing, as it was told to; its memory goes with its process, at once."""


DaemonMessage = Union[Load, Input, Run, Pace, Stop]  # noqa: UP007 - Python 3.10 evaluates this line
WorkerMessage = Union[Hello, Loaded, Refused, Progress, SliceDone, SliceError, Idle]  # noqa: UP007 - as above

Message = TypeVar("Message")

_encoder = msgspec.msgpack.Encoder()


def encode(message: DaemonMessage | WorkerMessage) -> bytes:
    """The message as a frame; raises WireError when it exceeds 1 MiB."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise WireError(f"a {type(message).__name__} frame of {len(body)} bytes, more than {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder(Generic[Message]):
    """Turns a stream of bytes, split anywhere, into messages. After a WireError it must not be fed again."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Message]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes; raises WireError for a frame that is too long or not a message."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise WireError(f"a frame of {length} bytes, more than {MAX_FRAME_BYTES}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                messages.append(self._decoder.decode(body))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise WireError(f"a frame that is not a message: {error}") from error
        return messages


def daemon_messages() -> FrameDecoder[DaemonMessage]:
    """A decoder for what the worker receives."""
    return FrameDecoder(msgspec.msgpack.Decoder(DaemonMessage))


def worker_messages() -> FrameDecoder[WorkerMessage]:
    """A decoder for what the daemon receives."""
    return FrameDecoder(msgspec.msgpack.Decoder(WorkerMessage))


def encode_input(items: list[bytes]) -> bytes:
    """A job's input, as it lies in the memfd and in golden files: a msgpack array of byte strings, one an item."""
    return _encoder.encode(items)


def decode_input(body: bytes | memoryview) -> list[bytes]:
    """The items of a job's input; raises WireError when it is anything else."""
    try:
        return msgspec.msgpack.decode(body, type=list[bytes])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"an input that is not a msgpack array of byte strings: {error}") from error
