"""A dispatcher with a referee of its own for tests: a real package, honest cars that compute it, and cars that lie."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from agent.fleet.messages import JobGrant, PackageRef, VerdictMessage
from agent.wire import decode_input
from hil.dispatcher.book import Book, Terms
from hil.dispatcher.copies import Tolerances
from hil.dispatcher.database import Database
from hil.dispatcher.pay import HoldBack
from hil.dispatcher.referee import Referee
from hil.dispatcher.refereeing import OnBook, Refereeing
from hil.dispatcher.replication import AdaptiveReplication
from hil.dispatcher.submit import add_job
from hil.dispatcher.tolerance import Tolerance
from hil.packages.nothing import build_nothing_package, nothing_item
from tests.hil.honest_car import PRICE, TTL_S, Car, Desk, Peer

ReadInput = Callable[[str], bytes | None]
T = TypeVar("T")


class TensorCar(Car):
    """Computes the package that does nothing; with `lie`, it adds that to each number."""

    def __init__(
        self, peer: Peer, unit: str, code: str, *, read_input: ReadInput, package_sha256: str, lie: int = 0
    ) -> None:
        super().__init__(peer, unit, code)
        self._read_input, self._package_sha256, self._lie = read_input, package_sha256, lie

    def numbers(self, grant: JobGrant) -> list[int]:
        """What is in the job's input."""
        return numbers_in(self._read_input(grant.input.sha256))

    def answers(self, grant: JobGrant, index: int) -> bytes:
        first = index * grant.slice_items
        numbers = self.numbers(grant)[first : first + grant.slice_items]
        return msgspec.json.encode([{"outputs": {"y": number + self._lie}} for number in numbers])

    def ask(self) -> JobGrant | None:
        """The next job of the package."""
        return self.request(packages=(self._package_sha256,))

    def work_once(self) -> VerdictMessage | None:
        """One lease, from asking to the verdict; None: there was none."""
        grant = self.ask()
        return None if grant is None else self.hand_in(self.result(grant))


class RefereedDesk(Desk):
    """A desk whose jobs are of a real package. `referee` is a replica of the referee, as the dispatcher runs one."""

    def __init__(
        self,
        folder: Path,
        *,
        database: Callable[[Callable[[], int]], Database] | None = None,
        has_referee: bool = True,
        known_permille: int = 0,
        hold_back: HoldBack | None = None,
        replicate: bool = True,
        tolerances: Tolerances | None = None,
    ) -> None:
        self.package = build_nothing_package(folder / "packages" / "nothing")
        super().__init__(
            folder,
            database=database,
            replication=AdaptiveReplication() if replicate else None,
            tolerances=tolerances or {self.package.package_sha256: Tolerance()}.get,
            has_referee=has_referee,
            known_permille=known_permille,
            hold_back=hold_back,
        )

    def add_numbers(
        self,
        numbers: Sequence[int],
        *,
        customer: str = "customer-1",
        terms: Terms | None = None,
        slice_items: int = 2,
    ) -> str:
        """A job that these numbers are the items of."""
        return add_job(
            self.book,
            self.objects,
            package=PackageRef(name=self.package.manifest.name, sha256=self.package.package_sha256),
            items=[nothing_item(number) for number in numbers],
            slice_items=slice_items,
            customer=customer,
            price_micro_per_item=PRICE,
            currency="EUR",
            ttl_s=TTL_S,
            terms=terms,
        )

    def tensor_car(self, unit: str, lie: int = 0) -> TensorCar:
        """A car that holds the package."""
        self.book.units.add_code(f"code of {unit}")
        sha256 = self.package.package_sha256
        return TensorCar(self, unit, f"code of {unit}", read_input=self.objects.read, package_sha256=sha256, lie=lie)

    def referee(self, referee: Referee | None = None, on_book: OnBook | None = None) -> Refereeing:
        """One replica's referee; its `step` does one task."""
        packages = {self.package.package_sha256: self.package.path}
        return Refereeing(referee or Referee(packages), self.objects, on_book or on(self.book), idle_s=0.01)

    def record(self, unit: str) -> tuple[int, int]:
        """Checks that found the unit right in a row, and ever wrong."""
        row = self.book.database.row("SELECT agreed, disagreed FROM units WHERE unit = :unit", unit=unit)
        assert row is not None
        return row["agreed"], row["disagreed"]


def numbers_in(body: bytes | None) -> list[int]:
    """The items of an input of the package."""
    assert body is not None
    return [int(np.load(io.BytesIO(item))) for item in decode_input(body)]


def on(book: Book) -> OnBook:
    """Asks the book at once: the test sees to it that one thread asks at a time."""

    def ask(question: Callable[[Book], T], /) -> T:
        return question(book)

    return ask
