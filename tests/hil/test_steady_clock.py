"""A book in SQLite counts time by a clock that nobody can set, and that a boot does not set back."""

from __future__ import annotations

from pathlib import Path

import pytest

from hil.dispatcher.steady_clock import open_steady


class Clocks:
    boot, wall = 1_000, 50_000_000

    def boot_ms(self) -> int:
        return self.boot

    def wall_ms(self) -> int:
        return self.wall


@pytest.mark.parametrize("names", [("a", "b"), ("", "")])
def test_a_sqlite_book_s_clock_never_goes_back(tmp_path: Path, names: tuple[str, str]) -> None:
    clocks = Clocks()
    first = open_steady(tmp_path, clocks, lambda: names[0])
    assert first.now_ms() == 50_000_000
    clocks.wall, clocks.boot = 10, 2_000
    assert first.now_ms() == 50_001_000, "the wall clock was set"
    if names[0]:
        beside = open_steady(tmp_path, clocks, lambda: names[0])
        assert beside.now_ms() == 50_001_000, "one clock for all processes"
        beside.close()
    first.execute(
        "INSERT INTO units (unit, cell, keyid, public_key_pem, key_protection, seen_ms)"
        " VALUES ('u', '00', 'k', 'p', 'file', :now)",
        now=first.now_ms(),
    )
    first.close()
    clocks.boot = 5
    after = open_steady(tmp_path, clocks, lambda: names[1])
    assert after.now_ms() >= 50_001_000, "another boot"
    after.close()
