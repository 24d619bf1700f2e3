"""The benchmark of keys: figures of what is here, the reason for what is not, and nothing left behind."""

from __future__ import annotations

import shutil

import pytest

from agent.trust.tpm import TpmPlace, TpmSigner
from hil.bench import trust_keys
from hil.emulated_keys import EmulatedTpm
from tests.trust.hardware_keys import needs_swtpm


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_keys, "SIGNATURES", 4)
    monkeypatch.setattr(trust_keys, "VERIFICATIONS", 4)


def test_a_file_key_is_measured_and_absent_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr("hil.emulated_keys.SOFTHSM_MODULES", ())
    file, swtpm, softhsm = trust_keys.measure_keys()
    assert file.sign_p50_ms is not None
    assert file.sign_p99_ms is not None
    assert file.verify_per_s is not None
    assert 0 < file.sign_p50_ms <= file.sign_p99_ms
    assert file.verify_per_s > 0
    assert (swtpm.sign_p50_ms, swtpm.absent) == (None, "swtpm is not installed; apt install swtpm swtpm-tools softhsm2")
    assert softhsm.absent == "SoftHSM is not installed; apt install softhsm2"


@needs_swtpm
def test_a_named_tpm_is_measured_and_keeps_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr("hil.emulated_keys.SOFTHSM_MODULES", ())
    with EmulatedTpm(tmp_path_factory.mktemp("real")) as tpm:
        figures = trust_keys.measure_keys(tpm.address)
        with TpmPlace(device=tpm.address).opened() as opened:
            assert opened.read_public(trust_keys.BENCH_HANDLE) is None
        TpmSigner.open_or_create(TpmPlace(device=tpm.address, handle=trust_keys.BENCH_HANDLE))
        assert "it is left alone" in trust_keys.measure_keys(tpm.address)[3].absent
    assert [one.backend for one in figures] == ["file", "swtpm", "softhsm", tpm.address]
    assert figures[1].sign_p50_ms is not None
    assert figures[3].sign_p50_ms is not None
    assert figures[3].absent == ""
