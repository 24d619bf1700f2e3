"""The fleet's side, small and pure: jobs, leases with epochs, verdicts. Other cars are played by chance.

It keeps the one row that counts (job, epoch, state) and pays a slice once. What a broker does to messages (loss,
delay, duplicates) is laid over it by `hil.sim.uplink`.
"""

from __future__ import annotations

import random

import msgspec

from agent.core.model import Grant, HandInKind, JobKey, Verdict

CUSTOMERS = ("acme", "globex")
CLASSES = ("ocr", "speech")


class Job:
    """A row of the book."""

    __slots__ = ("epoch", "expires_ms", "grant", "paid", "state")

    def __init__(self, grant: Grant, expires_ms: int) -> None:
        self.grant, self.epoch, self.expires_ms = grant, grant.epoch, expires_ms
        self.state = "leased"
        self.paid: dict[JobKey, Verdict] = {}


class Dispatcher:
    """One car's view of the fleet's dispatcher. Times are CLOCK_BOOTTIME of the car: durations are all that crosses."""

    def __init__(self, chance: random.Random, slice_ms: int) -> None:
        self._chance, self._slice_ms = chance, slice_ms
        self._jobs: dict[str, Job] = {}
        self._free: list[str] = []
        self.work = True
        """Whether there is any."""
        self.settled = 0

    def grant(self, now_ms: int, have: tuple[JobKey, ...]) -> tuple[Grant | None, int]:
        """A lease, or None and when to ask again (ms)."""
        chance = self._chance
        if not self.work or chance.random() < 0.05:
            return None, chance.choice((1_000, 10_000, 60_000))
        held = {key.job for key in have}
        again = next((job for job in self._free if job not in held), None)
        if again is not None and chance.random() < 0.5:
            self._free.remove(again)
            row = self._jobs[again]
            row.epoch += 1
            row.state, row.expires_ms = "leased", now_ms + row.grant.ttl_ms
            return _granted(row), 0
        grant = self._new_job(len(self._jobs))
        self._jobs[grant.job] = Job(grant, now_ms + grant.ttl_ms)
        return grant, 0

    def renew(self, key: JobKey, now_ms: int) -> Grant | None:
        """More time for a lease that is still this car's; None for any other, which gets no answer."""
        row = self._jobs[key.job]
        if row.state != "leased" or row.epoch != key.epoch or now_ms > row.expires_ms:
            return None
        row.expires_ms = now_ms + row.grant.ttl_ms
        return _granted(row)

    def judge(self, key: JobKey, kind: HandInKind, now_ms: int) -> Verdict:
        """A hand-in settles once, and only while its epoch is the job's."""
        row = self._jobs[key.job]
        if key in row.paid:
            return Verdict.DUPLICATE
        if key.epoch != row.epoch or row.state == "done":
            return Verdict.STALE
        if row.state == "leased" and now_ms > row.expires_ms and self._chance.random() < 0.3:
            row.epoch += 1  # another car was given the job meanwhile
            return Verdict.STALE
        if self._chance.random() < 0.02:
            return Verdict.LATER
        row.paid[key] = Verdict.SETTLED
        self.settled += 1
        row.state = "done" if kind is HandInKind.RESULT else "free"
        if row.state == "free":
            self._free.append(key.job)
        return Verdict.SETTLED

    def _new_job(self, number: int) -> Grant:
        chance = self._chance
        slices = chance.randint(6, 16)
        customer = chance.choices(CUSTOMERS, (24, 1))[0]
        expected_ms = slices * self._slice_ms
        ttl_ms = chance.choice((120_000, 900_000, 900_000, 3 * expected_ms, 3 * expected_ms))
        uploads = chance.random() < 0.3
        return Grant(
            job=f"job{number}",
            epoch=1,
            nonce=f"{number:032x}",
            customer=customer,
            package="ocr",
            package_sha256=("a" if customer == CUSTOMERS[0] else "b") * 64,
            input_url="http://127.0.0.1/objects/x",
            input_sha256="c" * 64,
            input_bytes=1000,
            items=slices * 100,
            slice_items=100,
            slices=tuple(range(slices)),
            ttl_ms=ttl_ms,
            price_micro_per_item=10,
            currency="USD",
            workload_class=chance.choice(CLASSES),
            expected_ms=expected_ms if chance.random() < 0.5 else 0,
            renew_ms=ttl_ms // 3 if ttl_ms > 900_000 or chance.random() < 0.1 else 0,
            upload_url="https://fleet.example/uploads" if uploads else "",
            upload_token="t" * 16 if uploads else "",
        )


def _granted(row: Job) -> Grant:
    """A job as it is granted at its present epoch: the first, or again with a nonce of its own."""
    if row.epoch == row.grant.epoch:
        return row.grant
    return msgspec.structs.replace(row.grant, epoch=row.epoch, nonce=f"{row.epoch:016x}{row.grant.nonce[16:]}")
