"""A package run for a person on an engine that needs plans: surveyed, built once, kept, and built anew when stale."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import wire
from agent.errors import PackageError, WorkerError
from agent.inference.runner import PackageRunner, user_cache
from tests.inference.scripted import BUILT, LOADED, SURVEYED, scripted
from tests.inference.test_errand import patiently
from tests.inference.test_shelf import put

COUNTED = f"open({{count!r}}, 'a').write('x'); say(wire.Building(phase='Tactics', done_permille=7)); {BUILT}"


class Bench:
    """A folder with a package, a program in the worker's place, and how often that has built."""

    def __init__(self, folder: Path, **lines: str) -> None:
        self._folder, self._count = folder, folder / "count"
        self._package = put(folder, "good")
        build = lines.pop("build", COUNTED).replace("{count!r}", repr(str(self._count)))
        self._program = scripted(folder, build=build, **lines)
        self.building: list[wire.Building] = []

    @property
    def builds(self) -> int:
        return self._count.stat().st_size if self._count.exists() else 0

    async def opened(self) -> wire.Loaded:
        runner = PackageRunner(
            self._package,
            1,
            executor="tensorrt",
            python=self._program,
            plans=self._folder / "state",
            on_building=self.building.append,
        )
        try:
            return await runner.open()
        finally:
            await runner.close()


def test_a_plan_is_built_once_and_kept(tmp_path: Path) -> None:
    here = Bench(tmp_path)

    async def work() -> None:
        for _ in range(2):
            assert (await here.opened()).executor == "tensorrt"
            assert here.builds == 1
        assert [one.phase for one in here.building] == ["Tactics"]
        assert (tmp_path / "state" / "device.secret").stat().st_mode & 0o777 == 0o600

    patiently(work())


def test_a_plan_that_does_not_load_is_built_anew_once(tmp_path: Path) -> None:
    flag = tmp_path / "seen"
    load = f"({LOADED}) if Path({str(flag)!r}).exists() else (Path({str(flag)!r}).touch(), say({STALE}))"
    here = Bench(tmp_path, load=load)

    async def work() -> None:
        assert (await here.opened()).executor == "tensorrt"
        assert here.builds == 2

    patiently(work())


STALE = "wire.Refused(detail='another release', stale_plan=True)"


def test_one_that_never_loads_is_an_error(tmp_path: Path) -> None:
    here = Bench(tmp_path, load=f"say({STALE})")

    async def work() -> None:
        with pytest.raises(WorkerError, match="does not load: another release"):
            await here.opened()
        assert here.builds == 2

    patiently(work())


@pytest.mark.parametrize(
    ("lines", "error", "why"),
    [
        ({"survey": "say(wire.Refused(detail='no driver', unavailable=True))"}, WorkerError, "no driver"),
        ({"build": "say(wire.Refused(detail='no such operator'))"}, PackageError, "no such operator"),
        ({"load": "say(wire.Refused(detail='golden vector'))"}, PackageError, "was refused: golden vector"),
        ({"load": "say(wire.Refused(detail='no device', unavailable=True))"}, WorkerError, "no device"),
    ],
)
def test_what_stands_in_the_way_is_said(
    tmp_path: Path, lines: dict[str, str], error: type[Exception], why: str
) -> None:
    here = Bench(tmp_path, **lines)

    async def work() -> None:
        with pytest.raises(error, match=why):
            await here.opened()

    patiently(work())


def test_an_engine_that_needs_no_plan_gets_none(tmp_path: Path) -> None:
    here = Bench(tmp_path, survey=SURVEYED.replace("needs_plan=True", "needs_plan=False"), load="loaded(order)")

    async def work() -> None:
        await here.opened()
        assert here.builds == 0
        assert not (tmp_path / "state").exists()

    patiently(work())


def test_a_persons_plans_lie_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "XDG_CACHE_HOME", "/elsewhere")
    assert user_cache() == Path("/elsewhere/driveway")
    monkeypatch.delitem(os.environ, "XDG_CACHE_HOME")
    assert user_cache() == Path.home() / ".cache" / "driveway"
