"""The device's secret: made once, readable by its owner alone, and another key for every use."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from agent.errors import TrustError
from agent.trust.device_secret import DeviceSecret


def test_it_is_made_once_and_every_use_has_a_key_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    first, again = DeviceSecret.open_or_create(path), DeviceSecret.open_or_create(path)
    assert first.key_for("a/1") == again.key_for("a/1")
    assert len({first.key_for("a/1"), first.key_for("a/2"), path.read_bytes()}) == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    other = DeviceSecret.open_or_create(tmp_path / "other")
    assert other.key_for("a/1") != first.key_for("a/1")
    assert path.read_bytes().hex() not in repr(first)


@pytest.mark.parametrize(
    ("body", "mode", "why"),
    [
        (b"x" * 32, 0o640, "others than its owner may read"),
        (b"x" * 31, 0o600, "holds 31 bytes, not 32; delete it"),
        (b"x" * 33, 0o600, "larger than 32 bytes"),
        (b"", 0o600, "holds 0 bytes"),
    ],
)
def test_what_is_no_secret_is_not_used(tmp_path: Path, body: bytes, mode: int, why: str) -> None:
    path = tmp_path / "secret"
    path.write_bytes(body)
    path.chmod(mode)
    with pytest.raises(TrustError, match=why):
        DeviceSecret.open_or_create(path)


def test_no_place_for_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="cannot create the key"):
        DeviceSecret.open_or_create(tmp_path / "nowhere" / "secret")
    (tmp_path / "folder").mkdir()
    with pytest.raises(TrustError, match="cannot be read: Is a directory"):
        DeviceSecret.open_or_create(tmp_path / "folder")
