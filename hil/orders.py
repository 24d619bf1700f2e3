"""An operator's words to a running dispatcher: `driveway-hil prices | demand | pace | cancel | ledgers | counts`.

The rig's own folder says where the dispatcher listens (`dispatcher/ready`) and holds the operator's token. A price FILE
is a JSON list of slots, times in ISO 8601 with their offset, prices in units of the currency per kWh:

    [{"start": "2026-03-01T00:00+01:00", "end": "2026-03-01T00:15+01:00", "price": 0.21}, …]
"""

from __future__ import annotations

import datetime as dt
import itertools
import urllib.error
import urllib.request
from decimal import Decimal
from pathlib import Path

import msgspec

from agent.core.model import PaceState
from agent.errors import ConfigError, FleetError
from agent.fleet.operator_messages import LONGEST_SLOT_MS, MAX_PRICE_SLOTS, DemandMessage, PricesMessage, PricesSlot
from agent.printable import printable
from hil.dispatcher.http_exchange import Refusal
from hil.dispatcher.operator_api import FAULTS, Cancelled, CancelOrder, Cleared, ClearOrder, FaultsPage, Paced
from hil.dispatcher.orders import TOKEN_FILE, DemandOrder, PricesOrder
from hil.dispatcher.paces import PaceOrder

TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 4 * 1024**2


class SlotLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One slot of a price file."""

    start: str
    end: str
    price: Decimal


class _Where(msgspec.Struct, frozen=True):
    """What of the dispatcher's `ready` file is needed here."""

    http_url: str


def prices(folder: Path, unit: str, file: Path, valid_for_s: int) -> int:
    """Send the price curve in `file` to one unit; 0 when it was issued."""
    order = PricesOrder(valid_for_s=valid_for_s, slots=read_prices(file))
    issued = msgspec.json.decode(_post(folder, f"/units/{unit}/prices", order), type=PricesMessage)
    print(f"{len(issued.slots)} prices issued to {unit}, until {_when(issued.expires_wall_ms)}")
    return 0


def demand(folder: Path, unit: str, stop_for_s: int, detail: str) -> int:
    """Order one unit to stop for so long, 0 to go on; 0 when it was issued."""
    order = DemandOrder(stop_for_s=stop_for_s, detail=detail)
    issued = msgspec.json.decode(_post(folder, f"/units/{unit}/demand", order), type=DemandMessage)
    print(f"{unit} is to stop for {issued.stop_for_s} s" if stop_for_s else f"{unit} may go on")
    return 0


def pace(folder: Path, cell: str, order: PaceOrder) -> int:
    """Set the pace of a cell, or of all; 0 when it was issued."""
    paced = msgspec.json.decode(_post(folder, f"/cells/{cell}/pace", order), type=Paced)
    meaning = {
        PaceState.OPEN: "cars may ask for work",
        PaceState.CLOSED: "cars ask for no new work, what runs goes on",
        PaceState.STOP: "cars give back what they hold",
    }
    print(f"{paced.cells} cell{'s' if paced.cells != 1 else ''}: {meaning[order.state]}")
    return 0


def cancel(folder: Path, job: str, order: CancelOrder) -> int:
    """Take a job's lease back; 0 when the dispatcher took the order, whether or not anybody had a lease."""
    done = msgspec.json.decode(_post(folder, f"/jobs/{job}/cancel", order), type=Cancelled)
    lease = f"{done.unit} gives {done.job}/{done.epoch} back within {order.grace_s} s" if done.unit else "nobody has it"
    print(f"{lease}; it is {'granted to nobody again' if order.withdraw else 'granted again'}")
    return 0


def ledger_faults(folder: Path) -> int:
    """Print what stands, and what stood, against units' ledgers, with the evidence, as JSON; 1 when anything stands."""
    found: list[object] = []
    standing = 0
    while True:
        page = msgspec.json.decode(_ask(folder, f"{FAULTS}?first={len(found)}", None), type=FaultsPage)
        found += page.faults
        standing += sum(one.cleared_ms is None for one in page.faults)
        if not page.faults:
            break
    print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode("utf-8"))
    return 1 if standing else 0


def clear_ledger(folder: Path, unit: str, why: str) -> int:
    """Grant a unit work again whose ledger was in dispute; 0 when something stood against it."""
    done = msgspec.json.decode(_post(folder, f"/ledgers/{unit}/clear", ClearOrder(why=why)), type=Cleared)
    if done.fault is None:
        print(f"nothing stands against the ledger of {unit}")
        return 1
    print(f"{unit} is granted work again; what stood against it is kept: {printable(done.fault.detail)}")
    return 0


def counts(folder: Path) -> int:
    """Print what the dispatcher has, and what it heard and said since it started, as JSON."""
    print(msgspec.json.format(_ask(folder, "/counts", None), indent=2).decode("utf-8"))
    return 0


def read_prices(file: Path) -> tuple[PricesSlot, ...]:
    """The slots of a price file; raises ConfigError."""
    try:
        lines = msgspec.json.decode(file.read_bytes(), type=list[SlotLine])
    except OSError as error:
        raise ConfigError(f"cannot read the prices {file}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file} is no list of prices: {error}") from error
    if len(lines) > MAX_PRICE_SLOTS:
        raise ConfigError(f"{file} has {len(lines)} slots", hint=f"at most {MAX_PRICE_SLOTS} fit into one message")
    slots = tuple(_slot(line, f"{file}: slot {number}") for number, line in enumerate(lines, 1))
    for number, (one, two) in enumerate(itertools.pairwise(slots), 2):
        if two.start_wall_ms < one.end_wall_ms:
            raise ConfigError(f"{file}: slot {number} begins before slot {number - 1} ends", hint="sort them by time")
    return slots


def _slot(line: SlotLine, where: str) -> PricesSlot:
    if not line.price.is_finite() or abs(line.price) > 10:
        raise ConfigError(f"{where} has the price {line.price}", hint="-10 to 10 per kWh")
    start_ms, end_ms = _wall_ms(line.start, where), _wall_ms(line.end, where)
    if not 0 < end_ms - start_ms <= LONGEST_SLOT_MS:
        raise ConfigError(
            f"{where} is from {line.start} to {line.end}", hint="a slot ends after it begins, within a day"
        )
    return PricesSlot(start_ms, end_ms, round(line.price * 1_000_000))


def _wall_ms(text: str, where: str) -> int:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{where} has the time {text!r}", hint="ISO 8601: 2026-03-01T00:15+01:00") from error
    if moment.tzinfo is None:
        raise ConfigError(f"{where} has a time without its offset: {text}", hint="write +01:00 or Z after it")
    return round(moment.timestamp() * 1000)


def _post(folder: Path, path: str, order: msgspec.Struct) -> bytes:
    """The answer to an order; raises FleetError with what the dispatcher said."""
    return _ask(folder, path, msgspec.json.encode(order))


def _ask(folder: Path, path: str, body: bytes | None) -> bytes:
    try:
        where = msgspec.json.decode((folder / "dispatcher" / "ready").read_bytes(), type=_Where)
        token = (folder / "dispatcher" / TOKEN_FILE).read_text("ascii")
    except (OSError, msgspec.DecodeError) as error:
        hint = "start one with `driveway-hil demo --keep`, and give its folder with --dir"
        raise FleetError(f"no dispatcher runs in {folder}: {error}", hint=hint) from error
    headers = {"Authorization": f"Bearer {token}"}
    asked = urllib.request.Request(where.http_url + path, body, headers)  # noqa: S310 - its own
    try:
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:  # noqa: S310 - URL, on this machine
            return bytes(answer.read(MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            said = _refusal(error.read(1024))
        raise FleetError(f"the dispatcher refused the order ({error.code}): {said}") from error
    except OSError as error:
        raise FleetError(f"the dispatcher of {folder} does not answer: {error}", hint="is it still running?") from error


def _refusal(body: bytes) -> str:
    """What the dispatcher said, as people may read it; whatever else answers there may say anything."""
    try:
        return printable(msgspec.json.decode(body, type=Refusal).error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return printable(body.decode("utf-8", "replace")) or "it did not say why"


def _when(wall_ms: int) -> str:
    return dt.datetime.fromtimestamp(wall_ms / 1000).astimezone().isoformat(timespec="minutes")
