"""A CAN bus without CAN, for rigs: a Unix datagram socket that takes `struct can_frame`, filtered in the kernel.

What CAN_RAW_FILTER does on a vehicle, a classic BPF program does here: datagrams of ids that nobody asked for never
reach this process. So a container without CAN can measure and prove the receive path, every line of it but the opening
of the socket. Whoever binds the car's path first can say what they like: never for a vehicle.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from pathlib import Path

from agent.vehicle.socketcan import FLAGGED_ID

SO_ATTACH_FILTER = 26
INSTRUCTION = struct.Struct("=HBBI")
"""`struct sock_filter` of linux/filter.h: code, jump if true, jump if false, operand."""
PROGRAM = struct.Struct("@HP")
"""`struct sock_fprog`: how many instructions, and where."""
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
EVERYTHING = 0xFFFF_FFFF
MAX_IDS = 250
"""A jump goes 255 instructions far."""


def car_path(path: Path) -> Path:
    """Where the car's end of the bus is bound, which must be there first."""
    return path.with_name(f"{path.name}.car")


def open_unixgram(path: Path, keys: tuple[int, ...]) -> socket.socket:
    """A socket bound to `path` (made anew) that hears these ids, from the car alone. Raises OSError.

    Being connected to the sender also lifts the kernel's limit of ten waiting datagrams; a CAN socket has none either.
    But a car that ends and comes back is another one, which is not heard: it needs the daemon anew.
    """
    path.unlink(missing_ok=True)
    bus = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        bus.setblocking(False)
        attach_filter(bus, keys)
        bus.bind(str(path))
        bus.connect(str(car_path(path)))
    except OSError:
        bus.close()
        raise
    return bus


def attach_filter(bus: socket.socket, keys: tuple[int, ...]) -> None:
    """Have the kernel drop every datagram that is no frame of one of these ids. Raises OSError."""
    code = filter_program(keys)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = PROGRAM.pack(len(code) // INSTRUCTION.size, ctypes.addressof(buffer))
    bus.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def filter_program(keys: tuple[int, ...]) -> bytes:
    """Compare the first word with each id (with its flags, so remote and error frames are none); take or drop."""
    if len(keys) > MAX_IDS:
        raise OSError(f"more than {MAX_IDS} ids on one bus")
    code = [INSTRUCTION.pack(LOAD_WORD, 0, 0, 0)]
    for index, key in enumerate(keys):
        # BPF reads words as big-endian; a frame's id is in this machine's order.
        word = int.from_bytes(FLAGGED_ID.pack(key), "big")
        code.append(INSTRUCTION.pack(JUMP_IF_EQUAL, len(keys) - index, 0, word))
    return b"".join((*code, INSTRUCTION.pack(RETURN, 0, 0, 0), INSTRUCTION.pack(RETURN, 0, 0, EVERYTHING)))
