"""The frames between the daemon and its worker: length-prefixed msgpack of tagged structs, without I/O.

A frame is four bytes of big-endian length (at most 1 MiB) and that many bytes of msgpack. Bulk does not travel here:
a job's input crosses as a sealed memfd, whose descriptor rides (SCM_RIGHTS) with the `Input` frame, as a msgpack
array of byte strings, one an item; plans and timing caches of an engine cross the same way, in either direction.
Neither side trusts the other: what is too long, unknown or out of range is a WireError, and the side that sees one
gives the other up.

The order is Hello; then one of three. Survey is answered by Surveyed or Refused, and the process ends. Build is
answered by Building, any number of times, then Built or Refused, and the process ends. Load is answered by Loaded or
Refused; then come any number of Input, Run and Forget, carried out in order. Pace comes at any time; Stop, then Idle
and the end of the process. Whenever the worker is not inside a call of the engine it says Beat, at least every second.
"""

from __future__ import annotations

import struct
from typing import Annotated, Generic, Literal, TypeVar, Union

import msgspec

from agent.errors import WorkerError

VERSION = 3
MAX_FRAME_BYTES = 1024 * 1024
_LENGTH = struct.Struct(">I")

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Detail = Annotated[str, msgspec.Meta(max_length=2048)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Dimension = Annotated[int, msgspec.Meta(ge=-1, le=2**53 - 1)]


PrecisionText = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]{1,16}$")]
BatchItems = Annotated[int, msgspec.Meta(ge=1, le=256)]


class WireError(WorkerError):
    """Bytes that are not a frame, or a frame that may not come now."""


class _Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Both ends come from the same release, so an unknown field is damage and not a newer peer."""


ExecutorName = Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
"""What an engine runs on; the configuration names one, and there is no falling back from it to another."""
Measure = Literal[
    "dies_with_parent",
    "own_network",
    "first_to_go",
    "low_priority",
    "not_dumpable",
    "open_files",
    "threads",
    "no_privileges",
    "landlock_files",
    "landlock_tcp",
    "landlock_devices",
    "landlock_scopes",
    "system_calls",
]
"""What a worker shuts itself in with; the configuration may require any of it."""
PackagePath = Annotated[str, msgspec.Meta(max_length=4096)]
Text = Annotated[str, msgspec.Meta(max_length=256)]
Threads = Annotated[int, msgspec.Meta(ge=1, le=256)]
MemoryMb = Annotated[int, msgspec.Meta(ge=64, le=1_048_576)]
MAX_TEXT = 256
MAX_NOTES = 16
MAX_LANES = 64
"""As many as a package may have buckets."""
MAX_PLAN_BYTES = 4 * 1024**3
MAX_TIMING_BYTES = 64 * 1024**2
TimingBytes = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIMING_BYTES)]

EXIT_REFUSED, EXIT_PROTOCOL, EXIT_LOST, EXIT_TERMINATED = 3, 4, 5, 143
"""The worker's exit status: its package was refused, the daemon broke the protocol or left, its accelerator was lost
(and with it whatever the process held), SIGTERM came. 0 after Stop."""
ACCELERATOR_LIBRARIES_MB = 3072
"""So much of the computer's memory (MiB) a worker may take for the accelerator's driver and the engine's libraries,
besides what it may take for its package. A guess: they map one to two GiB before the first byte of a model, no vendor
says how much, and without a GPU it was not measured."""
BUILDER_SETTINGS = 3
"""Raised with every change of how plans are built, so that those of before are built anew."""

# --- daemon to worker -----------------------------------------------------------------------------------------


class Survey(_Frame, frozen=True, tag=True):
    """Say what an executor finds on this computer; answered by Surveyed or Refused, and the worker exits."""

    executor: ExecutorName


class Build(_Frame, frozen=True, tag=True):
    """Build the engine plan of the package in the directory `path`; answered by Built or Refused.

    The package's own timing cache of this platform, if there is one, rides along in a sealed memfd.
    """

    path: PackagePath
    executor: ExecutorName
    threads: Threads
    memory_mb: MemoryMb
    timing_bytes: TimingBytes = 0


class Load(_Frame, frozen=True, tag=True):
    """Load the package in the directory `path`, once in a process; answered by Loaded or Refused.

    `drain_ms` is how long a drain may take: the worker chooses its micro-batches so that what is in flight ends within
    it. The engine's plan rides along in a sealed memfd where the executor needs one (`plan_bytes` > 0).
    """

    path: PackagePath
    executor: ExecutorName
    threads: Threads
    memory_mb: MemoryMb
    drain_ms: Annotated[int, msgspec.Meta(ge=1, le=10_000)]
    plan_bytes: Count = 0


class Input(_Frame, frozen=True, tag=True):
    """A job's input of `items` items comes in the memfd sent with this frame; it replaces the one before."""

    items: Count
    bytes: Count


class Run(_Frame, frozen=True, tag=True):
    """Compute items [first, last) of the input as slice `index`; answered by SliceDone or SliceError."""

    index: Count
    first: Count
    last: Count


class Forget(_Frame, frozen=True, tag=True):
    """The lease is over: drop its input and overwrite every buffer that held any of it. Has no answer."""


class Pace(_Frame, frozen=True, tag=True):
    """Compute for `duty_permille` thousandths of the time from now on; 0 pauses."""

    duty_permille: Annotated[int, msgspec.Meta(ge=0, le=1000)]


class Require(_Frame, frozen=True, tag=True):
    """Without these measures of its cage the worker does nothing, as if it had been started with them (`--require`).

    It comes before any order, and has no answer. For a worker whose command line is its unit's.
    """

    measures: Annotated[tuple[Measure, ...], msgspec.Meta(max_length=64)]


class Stop(_Frame, frozen=True, tag=True):
    """Finish the micro-batch in flight, drop the slice, answer Idle, free everything and exit."""


# --- worker to daemon -----------------------------------------------------------------------------------------


class Confinement(_Frame, frozen=True):
    """One thing that shuts the worker in, and whether it does: `enforced`, or why it does not on this platform."""

    name: Text
    state: Text


class Hello(_Frame, frozen=True, tag=True):
    """The first frame: the worker is up, confined like this, and speaks `version` of this wire."""

    pid: Count
    version: Count
    confinement: Annotated[tuple[Confinement, ...], msgspec.Meta(max_length=64)] = ()


class Beat(_Frame, frozen=True, tag=True):
    """The worker is alive and heeds what it is told; between two of them it is inside one call of the engine."""


class Platform(_Frame, frozen=True):
    """Everything of this computer that a plan depends on. A plan built on one platform is never loaded on another."""

    executor: Text
    version: Text
    """The engine library's full version."""
    driver: Text
    """The accelerator driver's version; empty on a CPU."""
    compute_capability: Text
    """`8.7`; empty on a CPU."""
    device: Text
    memory_mb: Count
    integrated: bool
    """Whether the accelerator shares the computer's memory."""


class Surveyed(_Frame, frozen=True, tag=True):
    """The executor is ready to work here. `needs_plan`: packages have to be built before they are loaded."""

    platform: Platform
    needs_plan: bool


class Building(_Frame, frozen=True, tag=True):
    """A build goes on: in the builder's words where it is, and how much of that is done, in thousandths."""

    phase: Text
    done_permille: Annotated[int, msgspec.Meta(ge=0, le=1000)]


class Built(_Frame, frozen=True, tag=True):
    """The plan, and the timing cache as it is now (0 bytes: none), come in sealed memfds with this frame."""

    plan_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_PLAN_BYTES)]
    timing_bytes: TimingBytes


class Loaded(_Frame, frozen=True, tag=True):
    """The package is loaded and its golden vector came out right.

    `micro_batch_ms` is what a vacate waits for: the longest measured micro-batch of the buckets in use, as often as the
    executor may have it in flight. `precision` is what the engine computes in (`agent.package.PrecisionName`), `batch`
    how many items a full micro-batch has in each of the package's lanes (buckets of one shape, narrowest first), and
    `golden_raw_sha256` the digest of the golden items' raw results, as a slice's (`SliceDone`).
    """

    executor: Annotated[str, msgspec.Meta(max_length=64)]
    device: Annotated[str, msgspec.Meta(max_length=256)]
    micro_batch_ms: Annotated[float, msgspec.Meta(ge=0, le=3_600_000)]
    package_sha256: Sha256
    kernels_sha256: Sha256
    precision: PrecisionText
    batch: Annotated[tuple[BatchItems, ...], msgspec.Meta(min_length=1, max_length=MAX_LANES)]
    golden_raw_sha256: Sha256
    notes: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MAX_NOTES)] = ()
    """What the executor has to do without on this computer and therefore does less well, a sentence each."""


class Refused(_Frame, frozen=True, tag=True):
    """The package must not run (or the executor cannot), and why; the worker exits.

    `stale_plan`: nothing is wrong with the package, only its plan does not load here and has to be built anew.
    """

    detail: Detail
    stale_plan: bool = False
    unavailable: bool = False
    """Nothing is wrong with the package either: the executor cannot work on this computer, or not now."""


class Progress(_Frame, frozen=True, tag=True):
    """`done` items of slice `index` are computed; the first micro-batch says so, later ones a few times a second."""

    index: Count
    done: Count


class SliceDone(_Frame, frozen=True, tag=True):
    """A finished slice.

    `output` is the JSON array of the items' answers in order (compact, sorted keys, ASCII), `output_sha256` its
    digest. An answer is what the package's operations make of the engine's outputs (`kernels`), or `{"error"}` for an
    item that was no good.
    `raw_sha256` is SHA-256 over the concatenated 32-byte digests of the items in order; an item's digest is SHA-256
    over its raw results one after the other: the header `{dtype}[{d0},{d1},…]` in ASCII, one newline, and the values as
    little-endian bytes in C order. Raw results are what leaves the accelerator (`ResultOperation.results`). An item
    that was not computed has the header `none[]` and no bytes. `raw_shape` is one item's shape, with -1 where items
    differ; it is empty, and `raw_dtype` is `none`, when no item was computed. Of several results no shape is given,
    and `raw_dtype` is `mixed` where they differ.
    """

    index: Count
    items: Count
    failed_items: Count
    output: bytes
    output_sha256: Sha256
    raw_sha256: Sha256
    raw_dtype: Annotated[str, msgspec.Meta(max_length=16)]
    raw_shape: Annotated[tuple[Dimension, ...], msgspec.Meta(max_length=8)]
    compute_ms: Annotated[int, msgspec.Meta(ge=0, le=86_400_000)]


class SliceError(_Frame, frozen=True, tag=True):
    """A slice could not be computed; the worker goes on."""

    index: Count
    detail: Detail


class Idle(_Frame, frozen=True, tag=True):
    """The worker has stopped computing, as it was told to; its memory goes with its process, at once."""


class Ending(_Frame, frozen=True, tag=True):
    """The process ends now, with this exit status. Said by one that systemd started: nobody waits for its status."""

    status: Annotated[int, msgspec.Meta(ge=0, le=255)]


DaemonMessage = Union[  # noqa: UP007 - Python 3.10 evaluates this
    Survey, Build, Load, Input, Run, Forget, Pace, Require, Stop
]
WorkerMessage = Union[  # noqa: UP007 - as above
    Hello, Beat, Surveyed, Building, Built, Loaded, Refused, Progress, SliceDone, SliceError, Idle, Ending
]

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

    def feed(self, data: bytes, most: int | None = None) -> list[Message]:
        """The messages that `data` completes; raises WireError for a frame that is too long or not a message.

        Where there are more than `most`, the rest waits: feed nothing to have it.
        """
        self._buffer += data
        messages: list[Message] = []
        while len(self._buffer) >= _LENGTH.size and (most is None or len(messages) < most):
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
