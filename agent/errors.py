"""Every error a person may see: one sentence that says what happened to which input, and what to do next.

    DrivewayError
    ├── ConfigError      a configuration or profile that cannot be used
    ├── PackageError     an inference package that must not run
    ├── WorkerError      the inference worker could not be started or broke its protocol
    ├── VehicleError     the platform did not take what was asked of it
    ├── ComputerError    the computer's own sensors or limits
    ├── TrustError       a key, signature, statement or ledger that does not hold
    ├── FleetError       the broker, the dispatcher or a transfer
    ├── TraceError       a recorded night that cannot be read
    ├── CoreError        a bug in what decides: the agent ends
    └── StoreError       the disk
        └── NotUnderstoodError   a row that another version wrote, or that is damaged

The command prints `str(error)`; logs carry `what` and `hint` as fields.
"""

from __future__ import annotations


class DrivewayError(Exception):
    """Base of all; `what` names the input at fault, `hint` is the next step ('' when there is none)."""

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}" if self.hint else self.what


class ConfigError(DrivewayError):
    """A configuration or profile that cannot be used."""


class PackageError(DrivewayError):
    """An inference package that must not run."""


class WorkerError(DrivewayError):
    """The inference worker could not be started or broke its protocol."""


class VehicleError(DrivewayError):
    """The platform did not take what was asked of it (to stay awake)."""


class ComputerError(DrivewayError):
    """The computer's own sensors or limits: not there, or not ours to set."""


class TrustError(DrivewayError):
    """A key, signature, statement or ledger that does not hold."""


class FleetError(DrivewayError):
    """The broker, the dispatcher or a transfer."""


class TraceError(DrivewayError):
    """A recorded night that cannot be read."""


class CoreError(DrivewayError):
    """What decides failed on an event: a bug. Nothing may be decided on from there, so the agent ends."""


class StoreError(DrivewayError):
    """The disk would not take or give what was asked."""


RESTORE = "restore driveway.db from a copy, or ask the fleet operator to enrol this unit anew"


class LedgerDamagedError(StoreError):
    """The ledger on the disk is not what was written: nothing may be earned on top of it, and nothing is healed."""

    def __init__(self, found: str) -> None:
        super().__init__(f"the ledger is damaged: {found}", hint=RESTORE)


class NotUnderstoodError(StoreError):
    """The disk gave what it holds, and this version does not understand it: another's, or damaged."""
