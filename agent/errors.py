"""Every error a person may see: one sentence that says what happened to which input, and what to do next.

    DrivewayError
    ├── ConfigError      a configuration or profile that cannot be used
    ├── PackageError     an inference package that must not run
    ├── WorkerError      the inference worker could not be started or broke its protocol
    ├── TrustError       a key, signature, statement or ledger that does not hold
    ├── FleetError       the broker, the dispatcher or a transfer
    └── StoreError       the disk

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


class TrustError(DrivewayError):
    """A key, signature, statement or ledger that does not hold."""


class FleetError(DrivewayError):
    """The broker, the dispatcher or a transfer."""


class StoreError(DrivewayError):
    """The disk would not take or give what was asked."""
