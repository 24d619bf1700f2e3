"""What a worker that was taken over would try on files and the network, and the program that tries everything.

Each attack raises OSError when it is refused, and else returns; the others are in `attacks_on_processes`.

`python -m tests.inference.attacks CONFIGURATION` shuts itself in with the measures that the configuration names, as the
worker does and by the same code, tries everything in turn, and prints what came of it as JSON. When it was started by
root it becomes an unprivileged user first, the one whom everything that it attacks belongs to: as in a car, where the
worker runs as the daemon's user. The modules that the attacks need are loaded before, since nobody but root may read
some interpreters.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.worker.sandbox import confine
from tests.inference import attacks_on_processes as on_processes
from tests.inference.attacks_on_processes import checked, run_a_shell
from tests.inference.caged import CALLS, NOBODY, Configuration, LimitedKernel

LIBC = on_processes.LIBC
LIBC.shmctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]


# --- files ----------------------------------------------------------------------------------------------------


def read_key(on: Configuration) -> None:
    assert Path(on.state, "key").read_bytes() == b"secret"


def list_state(on: Configuration) -> None:
    assert Path(on.state, "key") in Path(on.state).iterdir()


def write_a_file(on: Configuration) -> None:
    Path(on.state, "left").write_bytes(b"data")


def write_into_the_package(on: Configuration) -> None:
    Path(on.readable, "left").write_bytes(b"data")


def truncate_a_file(on: Configuration) -> None:
    os.truncate(Path(on.state, "log"), 0)


def remove_a_file(on: Configuration) -> None:
    Path(on.state, "old").unlink()


def make_a_directory(on: Configuration) -> None:
    Path(on.state, "folder").mkdir()


def link_a_file(on: Configuration) -> None:
    Path(on.readable, "link").symlink_to(Path(on.state, "key"))


def make_the_key_public(on: Configuration) -> None:
    Path(on.state, "key").chmod(0o644)


def change_a_time(on: Configuration) -> None:
    os.utime(Path(on.state, "key"), (0, 0))


def change_an_attribute(on: Configuration) -> None:
    os.setxattr(Path(on.state, "log"), "user.left", b"data")


def leave_data_in_shared_memory(_on: Configuration) -> None:
    Path("/dev/shm", f"left-{os.getpid()}").touch()
    Path("/dev/shm", f"left-{os.getpid()}").unlink()


def leave_data_in_system_v_memory(_on: Configuration) -> None:
    found = LIBC.shmget(0, 4096, 0o1600)
    checked(found)
    checked(LIBC.shmctl(found, 0, None))


def use_shared_memory_of_another(_on: Configuration) -> None:
    """By a guessed id, of nothing that is there: EINVAL says that it was tried."""
    try:
        checked(LIBC.shmctl(2**30, 0, None))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def watch_the_state(on: Configuration) -> None:
    descriptor = checked(LIBC.inotify_init1(os.O_CLOEXEC))
    try:
        checked(LIBC.inotify_add_watch(descriptor, on.state.encode(), 0x20))
    finally:
        os.close(descriptor)


# --- the network ----------------------------------------------------------------------------------------------


def connect_by_tcp(on: Configuration) -> None:
    with socket.socket() as connecting:
        connecting.settimeout(5)
        connecting.connect(("127.0.0.1", on.tcp_port))


def listen_by_tcp(_on: Configuration) -> None:
    with socket.socket() as listening:
        listening.bind(("0.0.0.0", 0))
        listening.listen()


def send_by_udp(on: Configuration) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sending:
        sending.sendto(b"data", ("127.0.0.1", on.udp_port))


def open_netlink(_on: Configuration) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW):
        pass


def connect_to_an_abstract_socket(on: Configuration) -> None:
    with socket.socket(socket.AF_UNIX) as connecting:
        connecting.connect("\0" + on.abstract)


def connect_to_the_control_socket(on: Configuration) -> None:
    with socket.socket(socket.AF_UNIX) as connecting:
        connecting.connect(str(Path(on.state, "control")))


def send_from_a_pair(on: Configuration) -> None:
    one, other = socket.socketpair(type=socket.SOCK_DGRAM)
    with one, other:
        one.sendto(b"data", str(Path(on.state, "notify")))


# --- what a worker needs --------------------------------------------------------------------------------------


def need_its_package(on: Configuration) -> None:
    assert Path(on.readable, "manifest.json").read_bytes() == b"{}"


def need_threads(_on: Configuration) -> None:
    thread = threading.Thread(target=os.getpid)
    thread.start()
    thread.join()


def need_sealed_memory(_on: Configuration) -> None:
    descriptor = os.memfd_create("plan", os.MFD_ALLOW_SEALING)
    os.write(descriptor, b"plan")
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    os.close(descriptor)


def need_a_pair_of_streams(_on: Configuration) -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(struct.pack("I", 1))


def need_to_look_at_itself(_on: Configuration) -> None:
    assert Path("/proc/self/maps").read_bytes()
    assert Path("/proc/cpuinfo").read_bytes()
    os.sched_getaffinity(0)
    os.kill(os.getpid(), 0)
    resource.prlimit(os.getpid(), resource.RLIMIT_CORE)


def need_to_name_its_threads(_on: Configuration) -> None:
    """As NVIDIA's driver does since 570, which gives up where it cannot."""
    descriptor = os.open(f"/proc/self/task/{threading.get_native_id()}/comm", os.O_RDWR)
    os.write(descriptor, b"cuda")
    os.close(descriptor)


Try = Callable[[Configuration], None]
NEEDS: tuple[Try, ...] = (
    need_its_package,
    need_threads,
    need_sealed_memory,
    need_a_pair_of_streams,
    need_to_look_at_itself,
    need_to_name_its_threads,
)
ATTACKS: tuple[Try, ...] = (
    read_key,
    list_state,
    write_a_file,
    write_into_the_package,
    truncate_a_file,
    remove_a_file,
    make_a_directory,
    link_a_file,
    make_the_key_public,
    change_a_time,
    change_an_attribute,
    leave_data_in_shared_memory,
    leave_data_in_system_v_memory,
    use_shared_memory_of_another,
    watch_the_state,
    connect_by_tcp,
    listen_by_tcp,
    send_by_udp,
    open_netlink,
    connect_to_an_abstract_socket,
    connect_to_the_control_socket,
    send_from_a_pair,
    on_processes.fork,
    on_processes.spawn,
    on_processes.outlive_the_daemon,
    on_processes.read_memory,
    on_processes.read_environment,
    on_processes.peek_at_memory,
    on_processes.signal_it,
    on_processes.signal_everybody,
    on_processes.signal_by_descriptor,
    on_processes.signal_by_owner,
    on_processes.starve,
    on_processes.make_idle,
    on_processes.pin,
    on_processes.limit,
    on_processes.keep_a_key,
    on_processes.change_personality,
    on_processes.open_a_ring,
    on_processes.make_a_thread_that_a_filter_cannot_see,
    on_processes.make_many_threads,
    on_processes.trace,
    on_processes.make_a_namespace,
    on_processes.become_readable,
    run_a_shell,
)
"""In an order in which none spoils the next; the last replaces the program."""


def become_nobody() -> None:
    """As a program started by another user would be, which may look at itself."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    checked(LIBC.prctl(on_processes.PR_SET_DUMPABLE, 1, 0, 0, 0))


def main() -> None:
    """Shut in, try everything, tell."""
    on = msgspec.json.decode(sys.argv[1], type=Configuration)
    if os.getuid() == 0:
        become_nobody()
    without = {call for measure, call in CALLS.items() if measure not in on.measures}
    kernel = LimitedKernel(without, on.landlock_abi)
    channel = socket.socket(fileno=on.socket)
    confinement = confine(channel, [on.readable], accelerator=True, kernel=kernel)
    told = {one.name: one.state for one in confinement}
    tried: dict[str, str] = {}
    for attempt in (*NEEDS, *ATTACKS):
        if attempt is run_a_shell:
            sys.stdout.write(json.dumps([told, tried]) + "\n")
            sys.stdout.flush()
        try:
            attempt(on)
            tried[attempt.__name__] = ""
        except OSError as error:
            tried[attempt.__name__] = errno.errorcode.get(error.errno or 0, str(error))
    sys.stdout.write(tried[run_a_shell.__name__] + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
