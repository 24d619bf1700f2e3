"""Cheats against the dispatcher, small; and bugs that would punish the honest or let cheats go: each is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from agent.errors import PackageError
from hil.bench.trust_cheats import measure_cheats
from hil.cheats import command
from hil.cheats.calibration import Calibration, calibrate
from hil.cheats.cars import CHEATS, UNTOLD
from hil.cheats.command import FOLDER, MAY_ESCAPE, detect
from hil.cheats.outputs import Outputs, drifts, outputs
from hil.cheats.world import Played, Terms, World
from hil.dispatcher import copies
from hil.dispatcher.copies import Copies
from hil.dispatcher.replication import ByClassOrValue, Judgement, SliceResult
from hil.dispatcher.tolerance import Agreement, Tolerance

pytestmark = pytest.mark.long

SMALL = Terms(cars=6, cheats_permille=200, jobs_per_car=12, keep=10)
LINES = 32


@pytest.fixture(scope="module")
def made() -> Outputs:
    try:
        return outputs(Path(__file__).parents[2] / FOLDER, LINES)
    except PackageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def calibrated(made: Outputs) -> list[Calibration]:
    del made  # what it skips for
    return calibrate(Path(__file__).parents[2] / FOLDER, LINES // 2)


def play(made: Outputs, cheat: str, terms: Terms = SMALL, seed: int = 1) -> Played:
    return World(made, cheat, seed, terms).play()


def test_every_cheat_with_wrong_answers_is_caught_and_nobody_else(made: Outputs, calibrated: list[Calibration]) -> None:
    report = detect(made, calibrated, seed=1, seeds=1, terms=SMALL)
    assert report.held
    assert [one.cheat for one in report.detections] == ["nobody cheats", *CHEATS]
    for one in report.detections:
        assert one.honest_punished == 0, one
        assert one.cheat in ("nobody cheats", *MAY_ESCAPE) or one.caught == one.cheats > 0, one


def test_the_same_seed_is_the_same_play(made: Outputs) -> None:
    assert play(made, "collusion") == play(made, "collusion")


def test_a_class_that_repeats_itself_shows_a_lower_precision(made: Outputs) -> None:
    """In a fleet of equal computers float16 is seen by its bits too, where the package has no bands to see it by."""
    no_bands = msgspec.structs.replace(made.tolerance, bands_ppm={})
    variants = dict.fromkeys(made.variants, made.variants["float32"])
    one_kind = msgspec.structs.replace(made, variants=variants, tolerance=no_bands)
    one_kind.variants["float16 weights"] = made.variants["float16 weights"]
    world = World(
        one_kind, "float16 weights only", 1, Terms(cars=20, cheats_permille=50, jobs_per_car=30, known_share=0.0)
    )
    for car in world.cars:
        car.kind = "float32"
    played = world.play()
    assert (played.flagged, played.caught, played.honest_punished, played.honest_flagged) == (1, 0, 0, 0)


def test_honest_engines_differ_in_bits_and_not_in_what_they_say(made: Outputs) -> None:
    found = {one.variant: one for one in drifts(made)}
    assert found["float32 again"].same_bits_permille == found["two threads"].same_bits_permille == 1000
    assert found["not optimised"].same_bits_permille < 1000, "else nothing is compared by value here"
    assert found["int8 weights"].within_tolerance_permille < 500
    for name in ("float16 hardware", "float16 weights"):
        assert found[name].same_text_permille >= 950, "nobody sees it in the texts"
        assert found[name].within_band_permille <= 50, "and everybody in the samples"
    honest = ("float32 again", "two threads", "batches of 8", "partly optimised", "not optimised")
    assert all(found[name].within_band_permille == 1000 for name in honest)


def test_bands_have_room_on_both_sides_on_lines_that_the_play_does_not_use(calibrated: list[Calibration]) -> None:
    for one in calibrated:
        for_the_honest, for_cheats = one.room
        assert for_the_honest >= 2.5, one
        assert for_cheats >= 3, one
    full, half = calibrated
    assert full.honest_ppm * 50 < full.dishonest_ppm, "the gap that all of this rests on"
    assert half.precision == "float16"


@pytest.mark.parametrize("cheat", ["float16 sold as float32", UNTOLD])
def test_without_bands_half_precision_is_not_found(made: Outputs, cheat: str) -> None:
    no_bands = msgspec.structs.replace(made, tolerance=msgspec.structs.replace(made.tolerance, bands_ppm={}))
    assert play(no_bands, cheat).caught == 0
    assert play(made, cheat).caught == play(made, cheat).cheats == 1


def test_a_band_that_is_too_narrow_punishes_the_honest(made: Outputs) -> None:
    narrow = msgspec.structs.replace(made.tolerance, bands_ppm={"float32": 1, "float16": 1})
    terms = msgspec.structs.replace(SMALL, cars=10)
    assert play(msgspec.structs.replace(made, tolerance=narrow), "", terms).honest_punished > 0


def test_a_loser_who_is_picked_at_random_is_found(made: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    def either(results: Sequence[SliceResult], compare: object) -> Judgement:
        differ = len({one.output_sha256 for one in results}) > 1
        return Judgement(frozenset({1}), frozenset({0})) if differ else Judgement(frozenset(range(len(results))))

    monkeypatch.setattr(copies, "judge_results", either)
    assert play(made, "constant answer").honest_punished > 0


def test_digests_compared_across_classes_are_found(made: Outputs) -> None:
    class Digests(ByClassOrValue):
        def compare(self, one: SliceResult, other: SliceResult, tolerance: Tolerance | None) -> Agreement:
            del tolerance
            return Agreement.SAME if one.output_sha256 == other.output_sha256 else Agreement.DIFFERENT

    assert World(made, "", 1, msgspec.structs.replace(SMALL, cars=10), comparator=Digests()).play().honest_punished > 0


def test_trust_that_is_not_reset_is_found(made: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that earned trust, and then cheats, has every job checked after the first that was found."""

    def agreed_after(cheat: str) -> int:
        world = World(made, "", 1, SMALL)
        turncoat = world.cars[0].unit
        world.book.database.execute("UPDATE units SET agreed = 40 WHERE unit = :unit", unit=turncoat)
        world.cars[0] = dataclasses.replace(world.cars[0], cheat=cheat)
        world.play()
        row = world.book.database.row("SELECT agreed, disagreed FROM units WHERE unit = :unit", unit=turncoat)
        assert row is not None
        assert (row["disagreed"] > 0) == bool(cheat)
        return int(row["agreed"])

    assert agreed_after("") >= 40
    assert agreed_after("constant answer") == 0
    note = Copies._note
    monkeypatch.setattr(
        Copies, "_note", lambda self, unit, change: note(self, unit, change.replace("agreed = 0, ", ""))
    )
    assert agreed_after("constant answer") > 0


def test_without_a_referee_a_third_car_decides(made: Outputs) -> None:
    terms = msgspec.structs.replace(SMALL, has_referee=False, known_share=0.0)
    played = play(made, "constant answer", terms)
    assert (played.caught, played.honest_punished) == (played.cheats, 0)


def test_the_command_tells_and_writes_it_down(
    made: Outputs,
    calibrated: list[Calibration],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "outputs", lambda _folder, _lines: made)
    monkeypatch.setattr(command, "calibrate", lambda _folder: calibrated)
    monkeypatch.setattr(command, "SEEDS", 1)
    monkeypatch.setattr(command, "CHEATS", ("smaller model", UNTOLD))
    monkeypatch.setattr(command, "Terms", lambda cars: msgspec.structs.replace(SMALL, cars=cars))
    assert command.cheats(tmp_path / "cheats.json", seed=2, cars=6) == 0
    assert "smaller" in capsys.readouterr().out
    assert msgspec.json.decode((tmp_path / "cheats.json").read_bytes())["held"] is True
    monkeypatch.setattr("hil.bench.trust_cheats.Terms", lambda cars: msgspec.structs.replace(SMALL, cars=cars))
    monkeypatch.setattr("hil.bench.trust_cheats.outputs", lambda _folder, _lines: made)
    monkeypatch.setattr("hil.bench.trust_cheats.calibrate", lambda _folder: calibrated)
    assert measure_cheats(seeds=1, cars=6).seeds == 1
