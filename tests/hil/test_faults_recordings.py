"""What the cars of a fault run recorded is kept beside its figures, by car. That it plays again: test_faults_run.py."""

from __future__ import annotations

from pathlib import Path

from hil.faults.recordings import keep, recorded_apart, recordings_of


def test_recordings_are_kept_beside_the_figures_under_their_cars_names(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for car in ("car-0000", "car-0001"):
        state = run / car / "state"
        state.mkdir(parents=True)
        recorded_apart(run / car, state)
        (state / "recordings" / "0000000001000.jsonl.gz").write_bytes(car.encode())
    assert [path.parent.parent.name for path in recordings_of(run)] == ["car-0000", "car-0001"]
    kept = keep(run, tmp_path / "figures-recordings" / "mosquitto")
    assert [path.name for path in kept] == [f"car-000{number}-0000000001000.jsonl.gz" for number in range(2)]
    assert [path.read_bytes() for path in kept] == [b"car-0000", b"car-0001"]


def test_a_run_without_recordings_keeps_none(tmp_path: Path) -> None:
    assert keep(tmp_path, tmp_path / "beside") == []
    assert not (tmp_path / "beside").exists()
