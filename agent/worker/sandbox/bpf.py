"""A small assembler for system call filters: from rules by name to the kernel's classic BPF.

The kernel runs the program at every system call, over `struct seccomp_data` (linux/seccomp.h): the call's number, the
processor whose calling convention was used, and six arguments. What no rule names is allowed. A rule looks at one
argument at most, and there at its lower 32 bits: every argument that rules look at is an int to the kernel.

Each rule is a compare and a few instructions behind it, so that no jump is longer than eight bits can say. On kernels
since 5.11 a call that is always allowed costs a bit in a table, and not a run of the program.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional, Tuple  # noqa: UP035 - Python 3.10 evaluates the fields of dataclasses below

from agent.worker.sandbox.syscalls import Processor

_INSTRUCTION = struct.Struct("<HBBI")
"""struct sock_filter: what to do, how far to jump when true and when false, a constant."""
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST = 0x15, 0x35
_NUMBER_AT, _PROCESSOR_AT, _ARGUMENTS_AT = 0, 4, 16
ALLOW = 0x7FFF_0000
KILL_PROCESS = 0x8000_0000
ERRNO = 0x0005_0000
MAX_INSTRUCTIONS = 4096


@dataclass(frozen=True)
class Rule:
    """Refuse a system call with `error`: always, or by the value of one argument.

    With `argument`, the call is refused where that argument, after `mask`, is one of `refused`; or, where `allowed` is
    given instead, where it is none of those.
    """

    name: str
    error: int
    argument: Optional[int] = None  # noqa: UP045 - see the import
    mask: int = 0xFFFF_FFFF
    refused: Tuple[int, ...] = ()  # noqa: UP006 - see the import
    allowed: Tuple[int, ...] = ()  # noqa: UP006 - see the import


def assemble(rules: Sequence[Rule], processor: Processor, *, foreign_error: int) -> bytes:
    """The program. Calls of another processor's table end the process, or are refused where both tables are native."""
    program = [
        _instruction(_LOAD, _PROCESSOR_AT),
        _instruction(_JUMP_IF_EQUAL, processor.audit, true=1),
        _instruction(_RETURN, KILL_PROCESS),
        _instruction(_LOAD, _NUMBER_AT),
    ]
    if processor.foreign_from is not None:
        program += [
            _instruction(_JUMP_IF_AT_LEAST, processor.foreign_from, false=1),
            _instruction(_RETURN, ERRNO | foreign_error),
        ]
    for rule in rules:
        number = processor.numbers.get(rule.name)
        if number is not None:
            program += _rule(rule, number)
    program.append(_instruction(_RETURN, ALLOW))
    assert len(program) <= MAX_INSTRUCTIONS
    return b"".join(program)


def _rule(rule: Rule, number: int) -> list[bytes]:
    """What stands behind the compare decides the call, so the number need not be loaded again."""
    body = _decision(rule)
    return [_instruction(_JUMP_IF_EQUAL, number, false=len(body)), *body]


def _decision(rule: Rule) -> list[bytes]:
    refuse = _instruction(_RETURN, ERRNO | rule.error)
    if rule.argument is None:
        return [refuse]
    values, listed, otherwise = rule.refused, refuse, _instruction(_RETURN, ALLOW)
    if rule.allowed:
        values, listed, otherwise = rule.allowed, otherwise, listed
    compares = [
        _instruction(_JUMP_IF_EQUAL, value & 0xFFFF_FFFF, true=len(values) - place)
        for place, value in enumerate(values)
    ]
    masked = [] if rule.mask == 0xFFFF_FFFF else [_instruction(_AND, rule.mask)]
    return [_instruction(_LOAD, _ARGUMENTS_AT + 8 * rule.argument), *masked, *compares, otherwise, listed]


def _instruction(code: int, constant: int, *, true: int = 0, false: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, true, false, constant)
