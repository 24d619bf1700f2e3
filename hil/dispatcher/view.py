"""What the dispatcher knows, for other processes: jobs, answers, payouts and the envelopes that prove them.

Read-only and live: open it on the dispatcher's folder while the dispatcher runs, or afterwards.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Self

import msgspec

from agent.errors import FleetError
from hil.dispatcher.database import open_for_reading


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """One job; `state` is `free`, `leased` or `done`. Items count once their slice is settled."""

    job: str
    state: str
    epoch: int
    holder: str | None
    slices: int
    slices_done: int
    items: int
    items_done: int
    items_failed: int
    paid_micro: int
    currency: str


class Payout(msgspec.Struct, frozen=True, kw_only=True):
    """What one unit was paid in one currency, and for what; `micro_wh` is the energy it says it drew."""

    unit: str
    currency: str
    paid_micro: int
    leases: int
    slices: int
    items: int
    micro_wh: int


class Attestation(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted hand-in: its DSSE envelope, and the key that an independent tool verifies it with."""

    job: str
    epoch: int
    unit: str
    keyid: str
    public_key_pem: str
    envelope: bytes


class View(contextlib.AbstractContextManager["View"]):
    """A reader of the book in `folder`; raises StoreError when there is none yet."""

    def __init__(self, folder: Path) -> None:
        self._database = open_for_reading(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def jobs(self) -> list[JobView]:
        """Every job, oldest first."""
        rows = self._database.execute(
            """
            SELECT job, state, jobs.epoch, holder, (jobs.items + slice_items - 1) / slice_items AS slices,
                   count(slice) AS slices_done, jobs.items, coalesce(sum(results.items), 0) AS items_done,
                   coalesce(sum(failed_items), 0) AS items_failed, coalesce(sum(paid_micro), 0) AS paid_micro, currency
            FROM jobs LEFT JOIN results USING (job) GROUP BY job ORDER BY jobs.rowid
            """
        )
        return [JobView(**dict(row)) for row in rows]

    def answers(self, job: str) -> list[Any]:
        """The answers to the job's items, in the order of the items, as the package writes them.

        Raises FleetError while slices are missing.
        """
        state = self._database.execute("SELECT state FROM jobs WHERE job = ?", (job,)).fetchone()
        if state is None or state["state"] != "done":
            raise FleetError(f"job {job} is not done", hint="wait until its state is 'done'")
        bodies = self._database.execute("SELECT body FROM results WHERE job = ? ORDER BY slice", (job,))
        return [answer for row in bodies for answer in msgspec.json.decode(row["body"], type=list[Any])]

    def payouts(self) -> list[Payout]:
        """What each unit has been paid."""
        rows = self._database.execute(
            """
            SELECT unit, currency, sum(handins.paid_micro) AS paid_micro, count(*) AS leases, sum(slices) AS slices,
                   sum(answered) AS items, sum(micro_wh) AS micro_wh
            FROM handins JOIN jobs USING (job)
            JOIN (SELECT job, epoch, count(*) AS slices, sum(items - failed_items) AS answered
                  FROM results GROUP BY job, epoch) AS done ON done.job = handins.job AND done.epoch = handins.epoch
            WHERE verdict = 'settled' GROUP BY unit, currency ORDER BY unit, currency
            """
        )
        return [Payout(**dict(row)) for row in rows]

    def attestations(self) -> list[Attestation]:
        """Every accepted hand-in, in the order of acceptance."""
        rows = self._database.execute(
            "SELECT job, epoch, unit, handins.keyid, public_key_pem, envelope FROM handins JOIN units USING (unit)"
            " WHERE verdict = 'settled' ORDER BY handins.rowid"
        )
        return [Attestation(**dict(row)) for row in rows]
