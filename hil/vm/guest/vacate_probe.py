#!/usr/bin/python3
"""In the vehicle: from the first frame that differs to the end of the worker, by the kernel's own clocks.

    vacate_probe.py INTERFACE CAN_ID(hex) PID   ->   {"frame_at_s": ..., "gone_at_s": ..., "latency_ms": ...}

The frame's time is the one that the kernel stamps on it as it arrives (SO_TIMESTAMPNS). The end is when the worker's
process descriptor becomes readable, and this is woken to see it: the latency is an upper bound. Says `ready` first.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time

CAN_FRAME = struct.Struct("=IB3x8s")
TIMESPEC = struct.Struct("@ll")
SO_TIMESTAMPNS = 35
PATIENCE_S = 60


def receive(bus: socket.socket) -> tuple[bytes, float]:
    """One frame's data, and when it arrived, in seconds of CLOCK_REALTIME."""
    frame, more, _, _ = bus.recvmsg(CAN_FRAME.size, 256)
    seconds, nanoseconds = TIMESPEC.unpack(more[0][2])
    return CAN_FRAME.unpack(frame)[2], seconds + nanoseconds / 1e9


def main(interface: str, can_id: str, pid: str) -> int:
    """Prints the two times; exit status 1 when one of the two did not happen."""
    worker = os.pidfd_open(int(pid))
    bus = socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW)
    bus.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FILTER, struct.pack("=II", int(can_id, 16), 0x7FF))
    bus.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    bus.bind((interface,))
    before, _ = receive(bus)
    print("ready", flush=True)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))  # late only by what the kernel needs
    frame_at_s = None
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        seen, _, _ = select.select([worker] if frame_at_s else [worker, bus.fileno()], [], [], 1.0)
        if worker in seen:
            gone_at_s = time.time()
            if frame_at_s is None:
                break
            latency_ms = (gone_at_s - frame_at_s) * 1000
            print(json.dumps({"frame_at_s": frame_at_s, "gone_at_s": gone_at_s, "latency_ms": latency_ms}), flush=True)
            return 0
        if bus.fileno() in seen:
            data, at_s = receive(bus)
            frame_at_s = at_s if data != before else None
    print(json.dumps({"frame_at_s": frame_at_s, "gone_at_s": None, "latency_ms": None}), flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
