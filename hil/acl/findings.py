"""What came of a probe: one finding for each attack."""

from __future__ import annotations

import enum

import msgspec


class Outcome(enum.StrEnum):
    """What became of an attack."""

    STOPPED = "stopped"
    WORKED = "worked"
    UNPROVEN = "unproven"
    """What it should be judged by did not work: no proof that it was stopped."""
    BOUNDED = "bounded"
    """It works, and can do no harm beyond a bound that `detail` tells."""
    UNTRIED = "not tried"
    """Something is missing that only the operator can give."""


class Finding(msgspec.Struct, frozen=True):
    """One attack, or the control (`control`), which has to work."""

    attack: str
    outcome: Outcome
    detail: str
    control: bool = False

    @property
    def held(self) -> bool:
        """As it should be, as far as it was tried."""
        if self.control:
            return self.outcome is Outcome.WORKED
        return self.outcome in {Outcome.STOPPED, Outcome.BOUNDED, Outcome.UNTRIED}


class Report(msgspec.Struct, frozen=True):
    """All of them; `held` when no attack worked, each that was tried was judged, and the control worked."""

    broker: str
    held: bool
    findings: tuple[Finding, ...]
