"""`driveway bundle`: what is planted everywhere is nowhere in the archive, and what support needs is."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.cli import exits
from agent.cli.bundle import archive, collect
from agent.cli.bundle.allow import MEMBERS, Allowed, vocabulary
from agent.cli.main import main
from agent.config import load
from agent.schema import SCHEMA
from tests.daemon.test_shutdown import CONFIG, configured

SECRETS = (
    "s3cr3tEnrolCode", "5YJ3E1EA7KF000316", "48.137154", "11.576124", "hunter2!", "eyJhbGciOiJIUzI1NiJ9",
    "fleet7-svc", "Erika Mustermann", "M-AB 1234", "4711-0815", "192.168.178.23", "Rechnung Nr. 2291",
)  # fmt: skip
"""A one-time code, a VIN, a position, a password, a token, a broker's user, a name, a plate, a PIN, an address, an
input."""
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-"


def planted() -> dict[str, Any]:
    """A status whose every free text quotes all of them."""
    text = f"cannot reach mqtts://fleet7-svc:hunter2!@host?token=eyJhbGciOiJIUzI1NiJ9: {' '.join(SECRETS)}"
    return {
        "version": "0.1.0",
        "state": "blocked",
        "reasons": [{"gate": "parked", "value": 1.0, "text": text, "clears_at": "2026-03-01T07:00:00Z"}],
        "link": {"connected": False, "broker": "fleet7-svc:hunter2!@192.168.178.23:8883", "detail": text},
        "latitude": 48.137154,
        "signals": [{"path": "Vehicle.CurrentLocation.Latitude", "value": 48.137154}],
        "position": [48.137154, 11.576124],
        "customer": "Erika Mustermann",
        "vin": "5YJ3E1EA7KF000316",
        "refused_packages": {"Erika Mustermann": text},
        "counts": {"5YJ3E1EA7KF000316": 3, "frames": 4, "gps_lat": 48.137154},
        "input": "Rechnung Nr. 2291",
    }


def test_nothing_that_was_planted_is_taken_and_the_rest_is() -> None:
    allowed = Allowed()
    said = json.dumps(allowed.document("status.json", planted()))
    assert [one for one in SECRETS if one in said or one.split()[0] in said.split('"')] == []
    assert "48.1" not in said  # nor rounded
    assert "hunter2" not in said
    assert "Mustermann" not in said
    taken = json.loads(said)
    assert (taken["version"], taken["state"]) == ("0.1.0", "blocked")
    assert taken["reasons"][0]["gate"] == "parked"
    assert taken["reasons"][0]["clears_at"] == "2026-03-01T07:00:00Z"
    assert taken["reasons"][0]["text"].startswith("cannot reach ")
    assert taken["counts"]["frames"] == 4
    assert allowed.redacted["status.json"]["customer"] == 1


@settings(max_examples=300, derandomize=True)
@given(
    st.text(ALPHABET, min_size=8, max_size=48), st.sampled_from(sorted(MEMBERS)), st.sampled_from(["", "a: ", "= '"])
)
@example("Passw0rd", "detail", "the broker said ")
@example("1234567890", "text", "")
def test_a_word_that_is_not_the_programs_own_never_passes(secret: str, member: str, before: str) -> None:
    """Whatever the member's name; a secret that is put together of this program's own words is none."""
    parts = [part for part in "".join(one if one.isalnum() else " " for one in secret).split() if part]
    if all(part.lower() in vocabulary() or (part.isdigit() and len(part) < 6) for part in parts):
        return
    if member in {"hash", "keyid", "root", "sha256"}:
        return
    said = json.dumps(Allowed().document("x", {member: f"{before}{secret}", "fields": {member: secret}}))
    assert secret not in said


@settings(max_examples=200, derandomize=True)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(sorted(MEMBERS)), inner),
        max_leaves=20,
    )
)
def test_any_document_is_taken_without_a_fault(data: Any) -> None:
    json.dumps(Allowed().document("x", data), allow_nan=False)


def test_what_the_caller_knows_is_never_taken_although_it_is_the_programs_own_word() -> None:
    allowed = Allowed(known=["parked"])
    assert "parked" not in json.dumps(allowed.document("x", {"text": "it is parked", "gate": "parked"}))


def test_one_text_has_one_placeholder_in_a_bundle_and_another_in_the_next() -> None:
    one, other = Allowed(), Allowed()
    assert one.text("Erika", "x") == one.text("Erika", "y") != other.text("Erika", "x")


# --- the whole ----------------------------------------------------------------------------------------------------


@pytest.fixture
def car(tmp_path: Path) -> Path:
    """A car's folder in which secrets lie wherever a bundle looks."""
    configured(tmp_path)
    text = CONFIG.replace('id = "unit-1"', 'id = "5YJ3E1EA7KF000316"')
    text = text.replace(
        "[fleet]", '[fleet]\nenrol_code = "s3cr3tEnrolCode"\nenrol_url = "https://fleet7-svc:hunter2!@e/x?t=1"'
    )
    (tmp_path / "agent.toml").write_text(f'{text}\n[policy]\ntime_zone = "Europe/Berlin"\n')
    state = tmp_path / "state"
    (state / "recordings").mkdir(parents=True)
    database = sqlite3.connect(state / "driveway.db")
    database.executescript(SCHEMA)
    fields = {
        "error": f"refused by {' '.join(SECRETS)}",
        "lat": 48.137154,
        "attempt": 3,
        "token": "eyJhbGciOiJIUzI1NiJ9",
    }
    rows = [(1_000 * at, "link_changed", json.dumps(fields).encode()) for at in range(50)]
    database.executemany("INSERT INTO log VALUES (?, ?, ?)", rows)
    database.commit()
    database.close()
    step = {
        "event": {
            "type": "SignalsSeen", "at_ms": 5, "source": "5YJ3E1EA7KF000316",
            "samples": [
                {"path": "Vehicle.Speed", "value": 0.0},
                {"path": "Vehicle.CurrentLocation.Latitude", "value": 48.137154},
            ],
        },
        "effects": [{"type": "SetPace", "token": "eyJhbGciOiJIUzI1NiJ9"}],
    }  # fmt: skip
    with gzip.open(state / "recordings" / "one.jsonl.gz", "wb") as file:
        file.write(b"\n".join([json.dumps({"state": SECRETS}).encode(), json.dumps(step).encode(), b""]))
    return tmp_path


def unpacked(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as packed:
        return {one.name: (packed.extractfile(one) or io.BytesIO()).read() for one in packed.getmembers()}


def test_a_bundle_holds_what_support_needs_and_no_secret(car: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = car / "out.tar.gz"
    assert main(["bundle", "--config", str(car / "agent.toml"), "--out", str(out), "--yes"]) == exits.FINE
    said = capsys.readouterr().out
    assert "log.jsonl" in said
    assert "a member" in said
    assert out.stat().st_mode & 0o777 == 0o600
    documents = unpacked(out)
    whole = b"\n".join(documents.values()).decode()
    assert [one for one in SECRETS if one in whole] == []
    assert "48.1" not in whole
    assert "hunter2" not in whole
    assert "Berlin" not in whole
    log = [json.loads(line) for line in documents["driveway-bundle/log.jsonl"].splitlines()]
    assert (log[0]["event"], log[0]["at_ms"], log[-1]["at_ms"]) == ("link_changed", 0, 49_000)
    assert log[0]["fields"]["attempt"] == 3
    (step,) = [json.loads(line) for line in documents["driveway-bundle/recording.jsonl"].splitlines()]
    assert (step["event"], step["effects"], step["signals"][0]) == (
        "SignalsSeen", ["SetPace"], {"path": "Vehicle.Speed", "value": 0.0},
    )  # fmt: skip
    assert "no daemon answers" in documents["driveway-bundle/status.json"].decode()
    checks = json.loads(documents["driveway-bundle/doctor.json"])["checks"]
    assert {"disk", "clock"} <= {one["name"] for one in checks}


def test_secret_files_are_known_by_what_is_in_them(car: Path) -> None:
    (car / "state/unit.key").write_text(
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA\n-----END PRIVATE KEY-----\n"
    )
    known = collect.secrets(load(car / "agent.toml"))
    assert {"s3cr3tEnrolCode", "MC4CAQAwBQYDK2VwBCIEIA"} <= known


def test_listing_writes_nothing(car: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(car)
    before = sorted(car.iterdir())
    assert main(["bundle", "--config", "agent.toml", "--list"]) == exits.FINE
    assert sorted(car.iterdir()) == before


def test_without_a_person_yes_has_to_be_said(car: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "--config", str(car / "agent.toml"), "--out", str(car / "x")]) == exits.USAGE
    assert "--yes" in capsys.readouterr().err
    assert not (car / "x").exists()


def test_a_file_that_is_there_is_not_replaced(car: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (car / "x").write_text("mine")
    assert main(["bundle", "--config", str(car / "agent.toml"), "--out", str(car / "x"), "--yes"]) == exits.FAILED
    assert "is there already" in capsys.readouterr().err
    assert (car / "x").read_text() == "mine"


def test_a_broken_configuration_does_not_keep_the_rest_away(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("state_dirr = 3")
    out = tmp_path / "out"
    assert main(["bundle", "--config", str(tmp_path / "agent.toml"), "--out", str(out), "--yes"]) == exits.FINE
    assert "did you mean" in unpacked(out)["driveway-bundle/doctor.json"].decode()


def test_the_same_documents_are_the_same_bytes_in_any_order() -> None:
    one = {"b": b"2", "a": b"1"}
    assert archive.packed(one) == archive.packed(dict(sorted(one.items())))
    with tarfile.open(fileobj=io.BytesIO(archive.packed(one))) as packed:
        assert [member.name for member in packed.getmembers()] == ["driveway-bundle/a", "driveway-bundle/b"]


def test_a_log_that_does_not_fit_loses_its_oldest_lines(car: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "LOG_BYTES", 2_000)
    out = car / "out"
    assert main(["bundle", "--config", str(car / "agent.toml"), "--out", str(out), "--yes"]) == exits.FINE
    log = unpacked(out)["driveway-bundle/log.jsonl"]
    assert len(log) < 2_200
    lines = [json.loads(line) for line in log.splitlines()]
    assert lines[0] == {"about": "older lines were left out"}
    assert lines[-1]["at_ms"] == 49_000
