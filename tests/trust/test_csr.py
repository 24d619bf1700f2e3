"""Certificate requests: read alike by cryptography and openssl, for a key in a file and one in a TPM."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from agent.errors import TrustError
from agent.trust.csr import certificate_request, request_info, to_pem
from agent.trust.keys import FileSigner
from agent.trust.tpm import TpmPlace, TpmSigner
from hil.emulated_keys import EmulatedTpm
from tests.trust.hardware_keys import needs_swtpm


def holds(request: bytes, signer: FileSigner | TpmSigner, unit: str) -> None:
    parsed = x509.load_der_x509_csr(request)
    assert parsed.is_signature_valid
    assert isinstance(parsed.signature_hash_algorithm, SHA256)
    assert parsed.public_key() == signer.public_key()
    assert [(one.oid, one.value) for one in parsed.subject] == [(NameOID.COMMON_NAME, unit)]
    assert list(parsed.extensions) == []


@pytest.mark.parametrize("unit", ["c", "car-0001", "x" * 64, "Fahrzeug-ÄÖÜ"])
def test_a_request_is_for_the_units_name_and_key(signer: FileSigner, unit: str) -> None:
    holds(certificate_request(unit, signer), signer, unit)


@needs_swtpm
def test_a_key_in_a_tpm_signs_its_own(tmp_path: Path) -> None:
    with EmulatedTpm(tmp_path) as emulated:
        signer = TpmSigner.open_or_create(TpmPlace(device=emulated.address))
        holds(certificate_request("car-0001", signer), signer, "car-0001")


def test_openssl_verifies_it(signer: FileSigner, tmp_path: Path) -> None:
    path = tmp_path / "request.pem"
    path.write_text(to_pem(certificate_request("car-0001", signer)))
    command = ["openssl", "req", "-in", str(path), "-verify", "-noout", "-subject"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "verify OK" in done.stdout + done.stderr
    assert "CN = car-0001" in done.stdout


@pytest.mark.parametrize("unit", ["", "x" * 65])
def test_a_name_that_no_certificate_has_is_refused(signer: FileSigner, unit: str) -> None:
    with pytest.raises(TrustError, match="1 to 64 characters"):
        request_info(unit, signer.public_key_pem())


def test_a_request_that_does_not_hold_is_not_shown(signer: FileSigner, stranger: FileSigner) -> None:
    class Impostor:
        def public_key_pem(self) -> str:
            return signer.public_key_pem()

        def sign(self, message: bytes) -> bytes:
            return stranger.sign(message)

    with pytest.raises(TrustError, match="does not hold"):
        to_pem(certificate_request("car-0001", Impostor()))
    with pytest.raises(TrustError, match="not a certificate request"):
        to_pem(b"0")
