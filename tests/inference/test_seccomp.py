"""The filter's program, run by an interpreter of our own: so that both processors' programs are tested on either."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.sandbox import seccomp
from agent.worker.sandbox.bpf import ALLOW, ERRNO, KILL_PROCESS, Rule, assemble
from agent.worker.sandbox.syscalls import AARCH64, X86_64, Processor

PID = 4711
CLONE_THREAD, SIGCHLD = 0x1_0000, 17
PTHREAD_FLAGS = 0x3D_0F00
"""What glibc makes a thread with."""
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
PROCESSORS = [X86_64, AARCH64]


def program_of(processor: Processor) -> bytes:
    return assemble(list(seccomp.rules(PID)), processor, foreign_error=errno.ENOSYS)


PROGRAMS = {processor.name: program_of(processor) for processor in PROCESSORS}


def run(program: bytes, audit: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel's classic BPF makes of one call; only the instructions that the assembler knows."""
    full = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number & 0xFFFF_FFFF, audit, 0, *(one & 0xFFFF_FFFF_FFFF_FFFF for one in full))
    instructions = list(struct.iter_unpack("<HBBI", program))
    accumulator, at = 0, 0
    while True:
        code, true, false, constant = instructions[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, constant)
            case 0x54:
                accumulator &= constant
            case 0x15:
                at += true if accumulator == constant else false
            case 0x35:
                at += true if accumulator >= constant else false
            case 0x06:
                return int(constant)
            case _:
                raise AssertionError(code)


def decision(processor: Processor, name: str, *arguments: int) -> int:
    return run(PROGRAMS[processor.name], processor.audit, processor.numbers[name], arguments)


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda one: one.name)
def test_what_is_refused_whatever_the_arguments(processor: Processor) -> None:
    names = [name for name in seccomp.REFUSED if name in processor.numbers]
    assert {name: decision(processor, name, 1, 2, 3) for name in names} == dict.fromkeys(names, EPERM)
    assert decision(processor, "clone3") == ENOSYS


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda one: one.name)
def test_every_name_is_known_on_one_processor_at_least(processor: Processor) -> None:
    """A name that was mistyped would refuse nothing, silently."""
    names = {rule.name for rule in seccomp.rules(PID)}
    assert names <= X86_64.numbers.keys() | AARCH64.numbers.keys()
    only_x86 = {"fork", "vfork", "chmod", "chown", "lchown", "utime", "utimes", "futimesat", "iopl", "ioperm"}
    only_x86 |= {"inotify_init", "modify_ldt"}
    assert names - processor.numbers.keys() == (only_x86 if processor is AARCH64 else set())


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda one: one.name)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("clone", (PTHREAD_FLAGS,), ALLOW),
        ("clone", (SIGCHLD,), EPERM),
        ("clone", (PTHREAD_FLAGS & ~CLONE_THREAD,), EPERM),
        ("clone", (PTHREAD_FLAGS | 0xFFFF_FFFF_0000_0000,), ALLOW),
        ("socketpair", (1, 1), ALLOW),
        ("socketpair", (1, 1 | 0o2000000 | 0o4000), ALLOW),
        ("socketpair", (1, 2), EPERM),
        ("socketpair", (1, 5), EPERM),
        ("kill", (PID, 9), ALLOW),
        ("kill", (PID - 1, 9), EPERM),
        ("kill", (0, 9), EPERM),
        ("kill", (-1, 9), EPERM),
        ("kill", (-PID, 9), EPERM),
        ("tgkill", (PID, PID + 1, 9), ALLOW),
        ("tgkill", (PID - 1, PID - 1, 9), EPERM),
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (PID, 7), ALLOW),
        ("prlimit64", (PID - 1, 7), EPERM),
        ("sched_setaffinity", (0,), ALLOW),
        ("sched_setaffinity", (PID - 1,), EPERM),
        ("fcntl", (3, 8, PID - 1), EPERM),
        ("fcntl", (3, 10), EPERM),
        ("fcntl", (3, 15), EPERM),
        ("fcntl", (3, 4, 0o4000), ALLOW),
        ("ioctl", (3, 0x8901), EPERM),
        ("ioctl", (3, 0xC020_462A), ALLOW),
        ("prctl", (1, 0), EPERM),
        ("prctl", (4, 1), EPERM),
        ("prctl", (15, 0), ALLOW),
        ("mmap", (0, 4096, 3, 0x22), ALLOW),
        ("mmap", (0, 4096, 3, 0x01, 7), ALLOW),
        ("mmap", (0, 4096, 3, 0x21), EPERM),
        ("mmap", (0, 4096, 3, 0x21 | 0x03 | 0x4000), EPERM),
    ],
)
def test_what_is_refused_by_an_argument(
    processor: Processor, name: str, arguments: tuple[int, ...], expected: int
) -> None:
    assert decision(processor, name, *arguments) == expected


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda one: one.name)
def test_an_accelerators_driver_may_share_memory_with_itself(processor: Processor) -> None:
    program = assemble(list(seccomp.rules(PID, accelerator=True)), processor, foreign_error=errno.ENOSYS)
    assert run(program, processor.audit, processor.numbers["mmap"], (0, 4096, 3, 0x21)) == ALLOW


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda one: one.name)
def test_a_program_of_another_processor_is_ended(processor: Processor) -> None:
    """Its numbers mean other calls."""
    audit_i386, audit_arm = 0x4000_0003, 0x4000_0028
    for audit in {audit_i386, audit_arm, *(one.audit for one in PROCESSORS)} - {processor.audit}:
        assert run(PROGRAMS[processor.name], audit, processor.numbers["ioctl"]) == KILL_PROCESS


def test_the_second_table_of_x86_is_no_way_around() -> None:
    """Number + 2^30 is the same call with 32-bit pointers."""
    for name in ("socket", "execve", "ioctl"):
        assert run(PROGRAMS["x86_64"], X86_64.audit, X86_64.numbers[name] | 0x4000_0000) == ENOSYS


@given(number=st.integers(0, 2**30 - 1), arguments=st.tuples(*[st.integers(0, 2**64 - 1)] * 6))
def test_what_no_rule_names_is_allowed(number: int, arguments: tuple[int, ...]) -> None:
    for processor in PROCESSORS:
        ruled = {processor.numbers.get(rule.name) for rule in seccomp.rules(PID)}
        if number not in ruled:
            assert run(PROGRAMS[processor.name], processor.audit, number, arguments) == ALLOW


@given(
    mask=st.integers(1, 2**32 - 1),
    values=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5, unique=True),
    argument=st.integers(0, 5),
    given_=st.integers(0, 2**64 - 1),
    allows=st.booleans(),
)
def test_a_rule_means_what_it_says(mask: int, values: list[int], argument: int, given_: int, *, allows: bool) -> None:
    listed = tuple(values)
    rule = Rule(
        "ioctl", errno.EPERM, argument, mask, refused=() if allows else listed, allowed=listed if allows else ()
    )
    program = assemble([rule], X86_64, foreign_error=errno.ENOSYS)
    for value in (given_, *values):
        arguments = tuple(value if place == argument else 0 for place in range(6))
        hit = (value & mask) in values
        assert run(program, X86_64.audit, X86_64.numbers["ioctl"], arguments) == (ALLOW if hit == allows else EPERM)


@pytest.mark.parametrize(
    ("processor", "header"),
    [(X86_64, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (AARCH64, "/usr/include/asm-generic/unistd.h")],
    ids=lambda one: one.name if isinstance(one, Processor) else "",
)
def test_the_numbers_are_the_kernels(processor: Processor, header: str) -> None:
    """Against the C library's headers, as far as they know the calls: those are older than some kernels."""
    if not Path(header).exists():
        pytest.skip("the kernel's headers are not installed, or are another processor's")
    found = re.findall(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text("utf-8"))
    theirs = {name: int(number) for name, number in found}
    known = processor.numbers.keys() & theirs.keys()
    assert len(known) > len(processor.numbers) - 8
    assert {name: processor.numbers[name] for name in known} == {name: theirs[name] for name in known}
