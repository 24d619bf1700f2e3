"""The cars of the play: what each hands in for the lines it is given. All of them sign, as one unit or another.

A dishonest car's statement is well made: the right lease, the right model, a plausible time, the precision that was
asked for, and the equivalence class of the honest ones. Only what it says of the lines is not what the model says, or
its unit's key is in two places.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from agent.trust.dsse import SigningKey
from agent.trust.session import Session, begin
from hil.cheats.outputs import LineAnswer, Outputs

UNTOLD = "float16, precision not told"
"""Its statements are as they were before they told the precision."""
CHEATS = (
    "float16 sold as float32",
    "float16 weights only",
    UNTOLD,
    "int8 sold as float32",
    "smaller model",
    "replayed outputs",
    "colleague's results",
    "constant answer",
    "collusion",
    "cheats once trusted",
    "cloned key",
    "restored disk image",
)
"""What a dishonest car does."""
TURN_AFTER = 20
"""Honest leases of one that waits until it is trusted."""
RESTORE_AFTER = 12
"""Leases until the disk is put back, or copied into a second computer."""
_MADE_UP_SAMPLES = base64.b64encode(struct.pack("<6f", *[1.0] * 6)).decode("ascii")
_PRECISIONS = {
    "float16 sold as float32": "float16 hardware",
    "float16 weights only": "float16 weights",
    UNTOLD: "float16 hardware",
    "int8 sold as float32": "int8 weights",
    "smaller model": "half the weights",
}


@dataclass
class Car:
    """One computer: `unit` and `signer` are who it says it is, `variant` what it computes with, `cheat` "" if honest.

    `number` is of its newest session, `counter` of its newest statement: what a disk image brings back.
    """

    unit: str
    signer: SigningKey
    kind: str
    variant: str
    cheat: str = ""
    number: int = 0
    counter: int = 0
    said: list[LineAnswer] = field(default_factory=list)
    session: Session | None = None

    @property
    def honest(self) -> bool:
        """Whether it does what it is paid for."""
        return not self.cheat

    def begin_session(self) -> Session:
        """Parked again: a new session key, under the next number that this disk knows of."""
        self.number += 1
        self.session = begin(self.signer, "file", unit=self.unit, number=self.number)
        return self.session

    def next_counter(self) -> int:
        """For the next statement."""
        self.counter += 1
        return self.counter

    def answers(self, lines: Sequence[int], outputs: Outputs, seen: dict[int, LineAnswer]) -> list[LineAnswer]:
        """What it hands in for these lines; `seen` are the newest answers of an honest colleague, by line."""
        plain = [outputs.variants[self.variant][line] for line in lines]
        if self.cheat in _PRECISIONS:
            return [outputs.variants[_PRECISIONS[self.cheat]][line] for line in lines]
        if self.cheat == "replayed outputs":
            self.said = self.said or plain
            return [self.said[place % len(self.said)] for place in range(len(lines))]
        if self.cheat == "colleague's results":
            any_of_his = list(seen.values()) or plain
            return [seen.get(line, any_of_his[place % len(any_of_his)]) for place, line in enumerate(lines)]
        turned = self.cheat == "cheats once trusted" and self.counter >= TURN_AFTER
        if turned or self.cheat == "constant answer":
            return [_made_up("Total 12.50 EUR")] * len(lines)
        if self.cheat == "collusion":
            return [_made_up(f"P/N {hashlib.sha256(b'%d' % line).hexdigest()[:8]}") for line in lines]
        return plain


def _made_up(text: str) -> LineAnswer:
    body = msgspec.json.encode({"confidence_permille": 990, "samples": _MADE_UP_SAMPLES, "text": text})
    return LineAnswer(body.decode("ascii"), hashlib.sha256(body).hexdigest())
