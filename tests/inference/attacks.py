"""What a worker that was taken over would try: each attack raises OSError when it is refused, and else returns.

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
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.worker.sandbox import confine
from agent.worker.sandbox.kernel import Kernel
from tests.inference.caged import CALLS, NOBODY, Configuration, LimitedKernel

PR_SET_DUMPABLE, PR_SET_PDEATHSIG = 4, 1
PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17
SYSTEM = Kernel()


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
    _checked(found)
    _checked(LIBC.shmctl(found, 0, None))


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


# --- programs and processes -----------------------------------------------------------------------------------


def fork(_on: Configuration) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def spawn(_on: Configuration) -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


def outlive_the_daemon(_on: Configuration) -> None:
    _checked(LIBC.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0))


def become_readable(_on: Configuration) -> None:
    _checked(LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))


def trace(on: Configuration) -> None:
    _checked(LIBC.ptrace(PTRACE_SEIZE, on.victim, None, None))


def read_memory(on: Configuration) -> None:
    with Path(f"/proc/{on.victim}/mem").open("rb"):
        pass


def read_environment(on: Configuration) -> None:
    assert Path(f"/proc/{on.victim}/environ").read_bytes()


def peek_at_memory(on: Configuration) -> None:
    """process_vm_readv of an address that is not mapped: EFAULT says that looking was allowed."""
    vector = (ctypes.c_size_t * 2)(4096, 1)
    local = ctypes.create_string_buffer(1)
    ours = (ctypes.c_size_t * 2)(ctypes.addressof(local), 1)
    try:
        _checked(LIBC.process_vm_readv(on.victim, ours, 1, vector, 1, 0))
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise


def signal_it(on: Configuration) -> None:
    os.kill(on.victim, signal.SIGCONT)


def signal_everybody(_on: Configuration) -> None:
    os.kill(-1, 0)


def signal_by_descriptor(on: Configuration) -> None:
    os.close(os.pidfd_open(on.victim))


def signal_by_owner(on: Configuration) -> None:
    one, other = os.pipe()
    try:
        fcntl.fcntl(one, fcntl.F_SETOWN, on.victim)
    finally:
        os.close(one)
        os.close(other)


def starve(on: Configuration) -> None:
    os.setpriority(os.PRIO_PROCESS, on.victim, 19)


def make_idle(on: Configuration) -> None:
    os.sched_setscheduler(on.victim, os.SCHED_BATCH, os.sched_param(0))


def pin(on: Configuration) -> None:
    os.sched_setaffinity(on.victim, os.sched_getaffinity(on.victim))


def limit(on: Configuration) -> None:
    resource.prlimit(on.victim, resource.RLIMIT_CORE, (0, 0))


# --- the kernel -----------------------------------------------------------------------------------------------


def make_a_namespace(_on: Configuration) -> None:
    """Only a process of one thread may, and a thread that was joined may still be ending."""
    while len(list(Path("/proc/self/task").iterdir())) > 1:
        os.sched_yield()
    SYSTEM.call("unshare", 0x1000_0000)


def keep_a_key(_on: Configuration) -> None:
    SYSTEM.call("add_key", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"left"), ctypes.c_char_p(b"data"), 4, -2)


def change_personality(_on: Configuration) -> None:
    SYSTEM.call("personality", 0)


def open_a_ring(_on: Configuration) -> None:
    os.close(SYSTEM.call("io_uring_setup", 1, ctypes.create_string_buffer(120)))


def make_a_thread_that_a_filter_cannot_see(_on: Configuration) -> None:
    """clone3 with arguments that no kernel takes: EINVAL says that it is there."""
    try:
        SYSTEM.call("clone3", ctypes.create_string_buffer(8), 8)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def make_many_threads(_on: Configuration) -> None:
    done = threading.Event()
    made = []
    try:
        for _ in range(600):
            thread = threading.Thread(target=done.wait)
            thread.start()
            made.append(thread)
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error
    finally:
        done.set()
        for thread in made:
            thread.join()


def run_a_shell(_on: Configuration) -> None:
    os.execv("/bin/sh", ["sh", "-c", "echo came off"])


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
    connect_by_tcp,
    listen_by_tcp,
    send_by_udp,
    open_netlink,
    connect_to_an_abstract_socket,
    connect_to_the_control_socket,
    send_from_a_pair,
    fork,
    spawn,
    outlive_the_daemon,
    read_memory,
    read_environment,
    peek_at_memory,
    signal_it,
    signal_everybody,
    signal_by_descriptor,
    signal_by_owner,
    starve,
    make_idle,
    pin,
    limit,
    keep_a_key,
    change_personality,
    open_a_ring,
    make_a_thread_that_a_filter_cannot_see,
    make_many_threads,
    trace,
    make_a_namespace,
    become_readable,
    run_a_shell,
)
"""In an order in which none spoils the next; the last replaces the program."""

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.shmctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]


def _checked(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def become_nobody() -> None:
    """As a program started by another user would be, which may look at itself."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    _checked(LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))


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
