"""What people write, as values: whole numbers, durations, local times, windows of the week, prices, classes.

Every function is an argparse `type`, or makes one: what cannot be meant is refused with one sentence that says what
can. Times are this computer's local time. A time that the clocks skip in spring is refused; of one that comes twice in
autumn the later is meant, so that a pause is never too short.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WISHES = ("schedule", "price-floor", "classes")
UNITS_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
LONGEST_S = 366 * UNITS_S["d"]
MOST_PRICE = 10
SOON_S = 600
REMARK_CHARACTERS = 200

Wrong = argparse.ArgumentTypeError


def whole(low: int, high: int) -> Callable[[str], int]:
    """Whole numbers from `low` to `high`."""

    def number(text: str) -> int:
        said = re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII)
        if said is None:
            raise Wrong(f"{text!r} is no whole number; write {low} to {high}")
        if not low <= int(text) <= high:
            raise Wrong(f"{text} is not between {low} and {high}")
        return int(text)

    return number


def duration(text: str) -> int:
    """`90m`, `1h30m`, `2d` as milliseconds."""
    if text.isascii() and text.isdigit():
        raise Wrong(f"{text!r} has no unit; write {text}m, {text}h or {text}d")
    found = re.fullmatch(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", text, re.ASCII)
    if not text or found is None:
        raise Wrong(f"{text!r} is no duration; write for example 30m, 2h, 1h30m or 1d")
    seconds = sum(int(number or 0) * unit_s for number, unit_s in zip(found.groups(), UNITS_S.values(), strict=True))
    if not 0 < seconds <= LONGEST_S:
        raise Wrong(f"{text!r} is {'no time at all' if not seconds else 'more than a year'}")
    return seconds * 1000


def moment(text: str, now: dt.datetime | None = None) -> int:
    """A local time to come as milliseconds since 1970; `now` (aware) is for tests."""
    here = dt.datetime.now().astimezone() if now is None else now
    at = _moment(text.strip().lower(), here)
    if at <= here:
        raise Wrong(f"{text!r} is over: that was {at:%a %Y-%m-%d %H:%M %Z}")
    if (at - here).total_seconds() > LONGEST_S:
        raise Wrong(f"{text!r} is more than a year away; leave it out to pause until `driveway resume`")
    return round(at.timestamp() * 1000)


def past(text: str, now: dt.datetime | None = None) -> int:
    """A local time that may be over, as milliseconds since 1970: a date, a date and time, `yesterday`, or how long ago.

    A date alone is its noon, where a night begins (`agent.cli.nights`).
    """
    here = dt.datetime.now().astimezone() if now is None else now
    said = text.strip().lower()
    if said in {"today", "yesterday"}:
        said = (here.date() - dt.timedelta(days=said == "yesterday")).isoformat()
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", said, re.ASCII):
        said += "T12:00"
    with contextlib.suppress(ValueError):
        at = dt.datetime.fromisoformat(said.upper())
        return round((at if at.tzinfo is not None else _local(at.date(), at.time())).timestamp() * 1000)
    with contextlib.suppress(Wrong):
        return round(here.timestamp() * 1000) - duration(said)
    raise Wrong(f"{text!r} is no time; write 2026-03-01 (its noon), 2026-03-01T22:00, yesterday, or 12h or 7d ago")


def _moment(text: str, here: dt.datetime) -> dt.datetime:
    with contextlib.suppress(ValueError):
        at = dt.datetime.fromisoformat(text.upper())
        return at if at.tzinfo is not None else _local(at.date(), at.time())
    day, _, clock = text.rpartition(" ")
    if (time := _time(clock)) is not None:
        today = here.date()
        if day in {"today", "tomorrow"}:
            return _local(today + dt.timedelta(days=day == "tomorrow"), time)
        if day in {"", *DAYS}:
            for ahead in range(8):
                date = today + dt.timedelta(days=ahead)
                if day in {"", DAYS[date.weekday()]} and (at := _local(date, time)) > here:
                    return at
        raise Wrong(f"{day!r} is no day; write today, tomorrow, {', '.join(DAYS)}, or a date (2026-03-01T07:00)")
    raise Wrong(f"{text!r} is no time; write 07:00, tomorrow 07:00, or 2026-03-01T07:00")


def _time(text: str) -> dt.time | None:
    found = re.fullmatch(r"(\d{1,2}):(\d{2})", text, re.ASCII)
    if found is None:
        return None
    hour, minute = int(found[1]), int(found[2])
    if hour > 23 or minute > 59:
        raise Wrong(f"{text!r} is no time of day")
    return dt.time(hour, minute)


def _local(date: dt.date, time: dt.time) -> dt.datetime:
    """That wall time in this computer's zone."""
    naive = dt.datetime.combine(date, time).replace(fold=1)
    try:
        at = naive.astimezone()
        back = dt.datetime.fromtimestamp(at.timestamp())  # noqa: DTZ006 - local, to be held against what was said
    except (OverflowError, OSError, ValueError):
        raise Wrong(f"{naive.isoformat()} is out of this computer's calendar") from None
    if back.replace(fold=0) != naive.replace(fold=0):
        raise Wrong(f"there is no {time:%H:%M} on {date}: the clocks go forward then")
    return at


def window(text: str) -> dict[str, object] | None:
    """`[DAYS] HH:MM-HH:MM` as a window of the week; None for `always`."""
    words = text.strip().lower().split()
    if words == ["always"]:
        return None
    days, hours = (DAYS, words[0]) if len(words) == 1 else (_days(words[0]), words[1]) if len(words) == 2 else ((), "")
    found = re.fullmatch(r"(\d{1,2}:\d{2})-(\d{1,2}:\d{2})", hours, re.ASCII)
    if found is None:
        raise Wrong(f'{text!r} is no window; write for example "mon-fri 22:00-06:00" or "always"')
    start = _time(found[1])
    end = dt.time() if found[2] == "24:00" else _time(found[2])
    assert start is not None
    assert end is not None
    if start == end and found[2] != "24:00":
        raise Wrong(f"{text!r} begins and ends at once; the whole day is 00:00-24:00")
    return {"days": list(days), "start": f"{start:%H:%M}", "end": f"{end:%H:%M}"}


def _days(text: str) -> tuple[str, ...]:
    named: set[str] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise Wrong(f"{part!r} is no day; write {', '.join(DAYS)}, mon-fri, or sat,sun")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        named.update(DAYS[index % 7] for index in range(begin, (end if end >= begin else end + 7) + 1))
    return tuple(day for day in DAYS if day in named)


def window_text(window: dict[str, object]) -> str:
    """A window as people write it."""
    days = window["days"]
    assert isinstance(days, list)
    numbers = [DAYS.index(day) for day in days]
    whole = numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2
    said = f"{days[0]}-{days[-1]}" if whole else ",".join(days)
    end = "24:00" if window["end"] == "00:00" else window["end"]
    return f"{'daily' if len(days) == 7 else said} {window['start']}-{end}"


def price(text: str) -> int:
    """A price per kWh in units of the currency, as millionths."""
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise Wrong(f"{text!r} is no price; write for example 0.05") from None
    if not amount.is_finite() or not 0 <= amount <= MOST_PRICE:
        raise Wrong(f"{text!r} is not between 0 and {MOST_PRICE} per kWh")
    micro = amount * 1_000_000
    if micro != micro.to_integral_value():
        raise Wrong(f"{text!r} is finer than a millionth of a unit of price")
    return int(micro)


def classes(text: str) -> list[str]:
    """`a,b` as the classes of work that are taken on; `any` as none, which means any."""
    if text.strip().lower() == "any":
        return []
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", name, re.ASCII):
            raise Wrong(f"{name!r} is no class of work; write for example ocr,speech, or any")
    return list(dict.fromkeys(names))


def wish(text: str) -> str:
    """The name of a standing wish."""
    if text not in WISHES:
        raise Wrong(f"{text!r} is no wish; these are: {', '.join(WISHES)}")
    return text


def remark(text: str) -> str:
    """A line for people."""
    if len(text) > REMARK_CHARACTERS or not text.isprintable():
        raise Wrong(f"a line of at most {REMARK_CHARACTERS} printable characters, please")
    return text


def version(text: str) -> int:
    """A version of the terms."""
    if not (text.isascii() and text.isdigit() and 1 <= len(text) <= 6 and int(text) >= 1):
        raise Wrong(f"{text!r} is no version of the terms; see `driveway consent`")
    return int(text)


def wall_s(stamp: str) -> float:
    """An RFC 3339 stamp as seconds since 1970."""
    return dt.datetime.fromisoformat(stamp).timestamp()


def local_text(stamp: str) -> str:
    """An RFC 3339 stamp in local time, as people say it: the day where it is not today, seconds where it is soon."""
    at, now = dt.datetime.fromisoformat(stamp).astimezone(), dt.datetime.now().astimezone()
    days = (at.date() - now.date()).days
    day = "" if days == 0 else "tomorrow " if days == 1 else f"{at:%a %Y-%m-%d} "
    soon = (at - now).total_seconds() < SOON_S
    return f"{day}{at:%H:%M:%S} {at:%Z}" if soon else f"{day}{at:%H:%M} {at:%Z}"
