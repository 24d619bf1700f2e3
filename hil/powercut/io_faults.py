"""Every call on the store's files fails once: the n-th write, sync, truncation or opening, for every n of the work.

    python -m hil.powercut.io_faults '{"folder": …, "kind": "S", "error": 5, …}'     under the recorder

The work is that of `hil.powercut.work`, anew for each n: it asks again for what was refused, so it gets through where
the store recovers by itself. Then nothing fails any more, and the folder is judged (`hil.powercut.books`). An error
that is not a StoreError ends the process, and that is a failure too.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec

from hil.demo.story import quiet_logs
from hil.powercut import recorder
from hil.powercut.books import Finding, judge
from hil.powercut.recorder import Control, Fault
from hil.powercut.states import SHOWN, scratch
from hil.powercut.work import Done, Told, Wish, Work, plant

CALLS = {"W": "write", "S": "sync", "T": "truncate", "O": "open"}
NOWHERE = Path("/dev/null")


class FaultWish(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls are to fail: each `every`-th of a kind, `times` in a row, with this error."""

    work: Wish
    kind: str
    error: int
    times: int = 1
    every: int = 1


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Of the runs (`faults`), `refused` heard of it as a StoreError; the others met it where it changes nothing (a
    checkpoint that is done again, the end of the process). `stuck` did not get through.
    """

    call: str
    error: int
    times: int
    faults: int
    refused: int
    stuck: int
    ok: int
    lost: int
    torn: int
    twice: int
    failures: tuple[str, ...]
    reasons: tuple[str, ...]
    seconds: float

    @property
    def held(self) -> bool:
        """Whether nothing was lost, whatever failed, and the work got through."""
        return self.faults == self.ok > 0 and self.stuck == 0


def survey(wish: FaultWish) -> Survey:
    """Run it in a process of its own (`wish.work.folder` is not used); raises DrivewayError."""
    with scratch() as made:
        work = msgspec.structs.replace(wish.work, folder=made)
        asked = msgspec.structs.replace(wish, work=work)
        return msgspec.json.decode(recorder.run("hil.powercut.io_faults", asked, Path(made), NOWHERE), type=Survey)


def _survey_here(wish: FaultWish, control: Control) -> Survey:
    began_s = time.monotonic()
    control.heal()
    _once(wish.work)
    calls = control.calls(wish.kind)
    counts, failures, reasons = Counter[Finding](), list[str](), Counter[str]()
    refused = stuck = 0
    for nth in range(1, calls + 1, wish.every):
        control.fail(Fault(wish.kind, nth, wish.error, wish.times))
        told, acknowledged = _once(wish.work)
        control.heal()
        said = asyncio.run(judge(Path(wish.work.folder) / "store", acknowledged))
        counts[said.finding] += 1
        refused += told.refusals > 0
        stuck += not told.is_through
        if told.first:
            reasons[told.first.replace(wish.work.folder, "…")] += 1
        if said.finding is not Finding.OK or not told.is_through:
            failures.append(f"call {nth}: {said.finding.value}: {said.detail or told.first}")
    return Survey(
        call=CALLS[wish.kind],
        error=wish.error,
        times=wish.times,
        faults=counts.total(),
        refused=refused,
        stuck=stuck,
        ok=counts[Finding.OK],
        lost=counts[Finding.LOST],
        torn=counts[Finding.TORN],
        twice=counts[Finding.TWICE],
        failures=tuple(failures[:SHOWN]),
        reasons=tuple(reasons),
        seconds=round(time.monotonic() - began_s, 1),
    )


def _once(wish: Wish) -> tuple[Told, list[Done]]:
    """The work, in a new folder; what came of it, and all that was acknowledged."""
    folder, acknowledged = Path(wish.folder) / "store", list[Done]()
    shutil.rmtree(folder, ignore_errors=True)
    work = Work(msgspec.structs.replace(wish, folder=str(folder)), acknowledged.append)
    return asyncio.run(work.run()), acknowledged


def main(asked: str) -> None:
    """Do what is asked for, and say on standard output what came of it."""
    wish = msgspec.json.decode(asked, type=FaultWish)
    quiet_logs()
    plant(wish.work)
    sys.stdout.buffer.write(msgspec.json.encode(_survey_here(wish, Control())))


if __name__ == "__main__":
    main(sys.argv[1])
