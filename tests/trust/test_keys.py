"""File keys: made once, private, and refused when they are not."""

from __future__ import annotations

import hashlib
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from agent.errors import TrustError
from agent.ports import Signer
from agent.trust import dsse
from agent.trust.keys import FileSigner, keyid, load_public_key


def test_created_once_private_and_the_same_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "unit.pem"
    first: Signer = FileSigner.open_or_create(path)
    again = FileSigner.open_or_create(path)
    assert first.keyid == again.keyid
    assert first.protection == "file"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["unit.pem"]
    assert dsse.signature_holds(load_public_key(first.public_key_pem()), again.sign(b"x"), b"x")


def test_keyid_is_the_digest_of_the_spki(tmp_path: Path) -> None:
    signer = FileSigner.open_or_create(tmp_path / "unit.pem")
    public = load_pem_public_key(signer.public_key_pem().encode())
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert signer.keyid == hashlib.sha256(der).hexdigest() == keyid(signer.public_key())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_key_that_others_can_reach_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "unit.pem"
    FileSigner.open_or_create(path)
    path.chmod(mode)
    with pytest.raises(TrustError, match=f"chmod 600 {path}"):
        FileSigner.open_or_create(path)


def test_what_is_no_p256_key_is_refused_and_kept(tmp_path: Path) -> None:
    def pem(key: object) -> bytes:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined,no-any-return]  # both key types have it

    path = tmp_path / "unit.pem"
    for content in (b"", b"rubbish", pem(Ed25519PrivateKey.generate()), pem(generate_private_key(SECP384R1()))):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(TrustError):
            FileSigner.open_or_create(path)
        assert path.read_bytes() == content


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="cannot create"):
        FileSigner.open_or_create(tmp_path / "nowhere" / "unit.pem")


def test_racing_creators_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / "unit.pem"
    keyids: list[str] = []
    start = threading.Barrier(8)

    def create() -> None:
        start.wait()
        keyids.append(FileSigner.open_or_create(path).keyid)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keyids) == 8
    assert len(set(keyids)) == 1


@pytest.mark.parametrize("pem", ["", "rubbish", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "ä"])
def test_what_is_no_public_key_is_refused(pem: str) -> None:
    with pytest.raises(TrustError):
        load_public_key(pem)
    other = generate_private_key(SECP384R1()).public_key()
    with pytest.raises(TrustError, match="P-256"):
        load_public_key(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())
