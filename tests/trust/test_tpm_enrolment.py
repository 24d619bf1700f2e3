"""The whole chain against swtpm: a unit's key is certified only when it lives in a TPM that a maker vouches for.

tpm2-tools are the independent check, in both directions: their verifier takes our quote, their TPM-less makecredential
seals what our TPM code opens, and their activatecredential opens what our makecredential sealed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from agent.errors import TrustError
from agent.trust.csr import certificate_request
from agent.trust.dsse import signature_holds
from agent.trust.keys import public_pem
from agent.trust.tpm import TpmPlace, TpmSigner
from agent.trust.tpm_commands import ENDORSEMENT
from agent.trust.tpm_enrolment import EK_CHAIN, TpmEvidence, activate, gather
from agent.trust.tpm_structures import (
    attestation_template,
    endorsement_template,
    parse_attestation,
    parse_public,
)
from agent.trust.tpm_wire import TpmError, block
from hil.certificates import Authority
from hil.dispatcher.credential import check_evidence, is_activated, make_credential
from hil.dispatcher.endorsement import check_endorsement
from hil.emulated_keys import EmulatedTpm
from tests.hil.test_dispatcher_endorsement import authority
from tests.trust.hardware_keys import needs_swtpm, needs_swtpm_setup, needs_tpm2_tools

pytestmark = needs_swtpm
UNIT = "car-0001"
LATER = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
"""After the certificates that the tests make."""


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedTpm]:
    """Without a certificate, as a board that nobody provisioned: its endorsement key is the ECC one."""
    with EmulatedTpm(tmp_path_factory.mktemp("tpm"), for_tools=True) as tpm:
        yield tpm


@pytest.fixture(scope="module")
def place(emulated: EmulatedTpm) -> TpmPlace:
    return TpmPlace(device=emulated.address)


@pytest.fixture(scope="module")
def request_(place: TpmPlace) -> bytes:
    return certificate_request(UNIT, TpmSigner.open_or_create(place))


@pytest.fixture(scope="module")
def evidence(place: TpmPlace, request_: bytes) -> TpmEvidence:
    return gather(place, request_)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TpmPlace]:
    """Another TPM, with a unit's key of its own."""
    with EmulatedTpm(tmp_path_factory.mktemp("other")) as tpm:
        place = TpmPlace(device=tpm.address)
        TpmSigner.open_or_create(place)
        yield place


# --- the chain --------------------------------------------------------------------------------------------------


def test_a_key_in_a_tpm_is_proven_to_be_there(place: TpmPlace, request_: bytes, evidence: TpmEvidence) -> None:
    attested = check_evidence(evidence, request_)
    assert attested.keyid == TpmSigner.open(place).keyid
    assert attested.attestation.clock.reset_count >= 1
    challenge = make_credential(attested.endorsement, parse_public(evidence.ak).name)
    assert is_activated(challenge, activate(place, evidence.ek, challenge.blob, challenge.encrypted_seed))
    assert not is_activated(challenge, bytes(32))


@needs_swtpm_setup
def test_a_makers_certificate_leads_from_the_maker_to_the_unit(tmp_path: Path) -> None:
    with EmulatedTpm(tmp_path, with_certificate=True) as emulated:
        place = TpmPlace(device=emulated.address)
        request = certificate_request(UNIT, TpmSigner.open_or_create(place))
        evidence = gather(place, request)
        maker = x509.load_pem_x509_certificate(emulated.authority.read_bytes())
        stranger = x509.load_pem_x509_certificate(Path(Authority(tmp_path / "stranger").issue("x").ca).read_bytes())

        certificate = check_endorsement(evidence, [stranger, maker], LATER)
        assert isinstance(certificate.public_key(), RSAPublicKey)
        attested = check_evidence(evidence, request)
        challenge = make_credential(attested.endorsement, parse_public(evidence.ak).name)
        assert is_activated(challenge, activate(place, evidence.ek, challenge.blob, challenge.encrypted_seed))

        with pytest.raises(TrustError, match="none of the makers"):
            check_endorsement(evidence, [stranger], LATER)
        with pytest.raises(TrustError, match="not valid now"):
            check_endorsement(evidence, [maker], LATER - dt.timedelta(days=2))
        with pytest.raises(TrustError, match="not a certificate"):
            check_endorsement(replace(evidence, ek_certificate=b""), [maker], LATER)
        with place.opened(20) as tpm, tpm.primary(ENDORSEMENT, endorsement_template(rsa=False)) as (_, ecc):
            pass
        with pytest.raises(TrustError, match="another TPM's"):
            check_endorsement(replace(evidence, ek=ecc.area), [maker], LATER)


@needs_swtpm_setup
def test_a_makers_root_leads_over_an_intermediate_from_a_file_to_the_tpm(tmp_path: Path) -> None:
    with EmulatedTpm(tmp_path, with_certificate=True) as emulated:
        place = TpmPlace(device=emulated.address)
        TpmSigner.open_or_create(place)
        root = x509.load_pem_x509_certificate(emulated.root.read_bytes())
        intermediate = x509.load_pem_x509_certificate(emulated.authority.read_bytes())
        assert intermediate.issuer == root.subject != intermediate.subject
        bare = gather(place, b"a request")
        assert bare.ek_chain == ()
        with pytest.raises(TrustError, match="none of the makers"):
            check_endorsement(bare, [root], LATER)

        evidence = gather(replace(place, ek_chain_file=emulated.authority), b"a request")
        assert evidence.ek_chain == (intermediate.public_bytes(Encoding.DER),)
        check_endorsement(evidence, [root], LATER)
        (tmp_path / "chain.der").write_bytes(2 * evidence.ek_chain[0] + bytes(100))
        assert gather(replace(place, ek_chain_file=tmp_path / "chain.der"), b"").ek_chain == evidence.ek_chain
        for body, said in ((None, "No such file"), (b"-----BEGIN CERTIFICATE-----", "chain.der: ")):
            (tmp_path / "chain.der").unlink()
            if body is not None:
                (tmp_path / "chain.der").write_bytes(body)
            with pytest.raises(TrustError, match=f"the chain of the TPM's certificate .*{said}"):
                gather(replace(place, ek_chain_file=tmp_path / "chain.der"), b"")
            (tmp_path / "chain.der").touch()


@needs_tpm2_tools
def test_a_chain_that_the_maker_put_into_the_tpm_goes_along(emulated: EmulatedTpm, place: TpmPlace) -> None:
    """Two certificates one behind the other, which end in the middle of the second index, padded."""
    TpmSigner.open_or_create(place)
    first, second = (authority(name).public_bytes(Encoding.DER) for name in ("one", "two"))
    stored = first + second
    for index, part in enumerate((stored[:500], stored[500:] + b"\xff" * 20)):
        at, path = hex(EK_CHAIN.start + index), emulated.state / f"part-{index}"
        path.write_bytes(part)
        define = ("tpm2_nvdefine", at, "-C", "o", "-s", str(len(part)), "-a", "ownerread|ownerwrite|authread")
        for command in (define, ("tpm2_nvwrite", at, "-C", "o", "-i", path)):
            done = tool(emulated, *command)
            assert done.returncode == 0, done.stderr
    try:
        assert gather(place, b"").ek_chain == (first, second)
    finally:
        for index in range(2):
            tool(emulated, "tpm2_nvundefine", hex(EK_CHAIN.start + index), "-C", "o")


# --- cheats -----------------------------------------------------------------------------------------------------


def test_a_secret_opens_in_its_own_tpm_alone(place: TpmPlace, other: TpmPlace, evidence: TpmEvidence) -> None:
    endorsement, name = parse_public(evidence.ek), parse_public(evidence.ak).name
    challenge = make_credential(endorsement, name)
    with pytest.raises(TrustError, match="an endorsement key that this TPM does not have"):
        activate(other, evidence.ek, challenge.blob, challenge.encrypted_seed)
    for_another_key = make_credential(endorsement, parse_public(evidence.key).name)
    with pytest.raises(TpmError, match="an integrity check failed"):
        activate(place, evidence.ek, for_another_key.blob, for_another_key.encrypted_seed)
    for spot in (3, 40, len(challenge.blob) - 1):
        spoilt = bytearray(challenge.blob)
        spoilt[spot] ^= 1
        with pytest.raises(TpmError):
            activate(place, evidence.ek, bytes(spoilt), challenge.encrypted_seed)


def test_evidence_of_another_tpm_request_or_key_is_refused(
    place: TpmPlace, other: TpmPlace, request_: bytes, evidence: TpmEvidence
) -> None:
    theirs = gather(other, request_)
    another_request = certificate_request("car-0002", TpmSigner.open(place))
    their_request = certificate_request(UNIT, TpmSigner.open(other))
    for spoilt, request, said in (
        (replace(evidence, ak=theirs.ak), request_, "not signed by the attestation key"),
        (replace(evidence, key=theirs.key), request_, "certified another key"),
        (replace(evidence, key=evidence.ak), request_, "no P-256 signing key"),
        (replace(evidence, ak=evidence.key), request_, "could sign what the TPM did not say"),
        (replace(evidence, ek=evidence.key), request_, "could be used for more than opening credentials"),
        (replace(evidence, signature=theirs.signature), request_, "not signed by the attestation key"),
        (evidence, another_request, "made for another certificate request"),
        (theirs, request_, "the certificate request is for another key"),
        (gather(place, their_request), their_request, "the certificate request is for another key"),
    ):
        with pytest.raises(TrustError, match=said):
            check_evidence(spoilt, request)


def test_a_quote_is_no_certification(place: TpmPlace, request_: bytes, evidence: TpmEvidence) -> None:
    with place.opened(20) as tpm, tpm.primary(ENDORSEMENT, attestation_template()) as (handle, _):
        quote, signature = tpm.quote(handle, [0], hashlib.sha256(request_).digest())
    with pytest.raises(TrustError, match="no certification of a key"):
        check_evidence(replace(evidence, certification=quote, signature=signature), request_)


@pytest.mark.parametrize("without", [1 << 1, 1 << 4, 1 << 5])
def test_a_key_that_could_have_left_a_tpm_is_refused(request_: bytes, evidence: TpmEvidence, without: int) -> None:
    """What a cheat would send: the same key with the attributes of an imported one."""
    area = bytearray(evidence.key)
    area[4:8] = (int.from_bytes(area[4:8], "big") & ~without).to_bytes(4, "big")
    with pytest.raises(TrustError, match="no P-256 signing key that was made in the TPM"):
        check_evidence(replace(evidence, key=bytes(area)), request_)


@pytest.mark.parametrize("request_der", [b"", b"0", b"0\x82\x01\x00"])
def test_what_is_no_request_is_refused(evidence: TpmEvidence, request_der: bytes) -> None:
    with pytest.raises(TrustError):
        check_evidence(evidence, request_der)


@pytest.mark.parametrize("size", [0, 33])
def test_a_secret_has_the_size_that_a_tpm_takes(evidence: TpmEvidence, size: int) -> None:
    with pytest.raises(TrustError, match="a credential of"):
        make_credential(parse_public(evidence.ek), b"name", bytes(size))


# --- other people's tools ---------------------------------------------------------------------------------------


def tool(emulated: EmulatedTpm, *command: str | Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TPM2TOOLS_TCTI": emulated.tcti}
    return subprocess.run([*map(str, command)], env=env, capture_output=True, check=False, text=True)


@needs_tpm2_tools
def test_tpm2_makecredential_seals_what_we_open(
    emulated: EmulatedTpm, place: TpmPlace, evidence: TpmEvidence, tmp_path: Path
) -> None:
    (tmp_path / "ek").write_bytes(block(evidence.ek))
    (tmp_path / "secret").write_bytes(b"a secret of theirs")
    name = parse_public(evidence.ak).name.hex()
    sealed = tmp_path / "sealed"
    command: list[str | Path] = [
        "tpm2_makecredential",
        "-T",
        "none",
        "-u",
        tmp_path / "ek",
        "-s",
        tmp_path / "secret",
        "-n",
        name,
    ]
    done = tool(emulated, *command, "-o", sealed)
    assert done.returncode == 0, done.stderr
    body = sealed.read_bytes()[8:]  # their file begins with a magic word and a version
    size = int.from_bytes(body[:2], "big")
    blob, seed = body[2 : 2 + size], body[4 + size :]
    assert activate(place, evidence.ek, blob, seed) == b"a secret of theirs"


@needs_tpm2_tools
@pytest.mark.parametrize("kind", ["ecc", "rsa"])
def test_tpm2_activatecredential_opens_what_we_seal(emulated: EmulatedTpm, tmp_path: Path, kind: str) -> None:
    ek, ak = tmp_path / "ek.ctx", tmp_path / "ak.ctx"
    steps = [
        ("tpm2_createek", "-c", ek, "-G", kind, "-u", tmp_path / "ek.pub"),
        ("tpm2_createak", "-C", ek, "-c", ak, "-G", "ecc", "-g", "sha256", "-s", "ecdsa", "-u", tmp_path / "ak.pub"),
        ("tpm2_flushcontext", "-t"),
        ("tpm2_startauthsession", "--policy-session", "-S", tmp_path / "session"),
        ("tpm2_policysecret", "-S", tmp_path / "session", "-c", "e"),
    ]
    for step in steps:
        done = tool(emulated, *step)
        assert done.returncode == 0, done.stderr
    endorsement = parse_public((tmp_path / "ek.pub").read_bytes()[2:])
    attestation = parse_public((tmp_path / "ak.pub").read_bytes()[2:])
    assert endorsement.is_endorsement_key
    assert attestation.is_attestation_key
    challenge = make_credential(endorsement, attestation.name)
    sealed = bytes.fromhex("badcc0de00000001") + block(challenge.blob) + block(challenge.encrypted_seed)
    (tmp_path / "sealed").write_bytes(sealed)
    session = f"session:{tmp_path / 'session'}"
    opened = tmp_path / "opened"
    done = tool(
        emulated, "tpm2_activatecredential", "-c", ak, "-C", ek, "-i", tmp_path / "sealed", "-o", opened, "-P", session
    )
    tool(emulated, "tpm2_flushcontext", tmp_path / "session")
    tool(emulated, "tpm2_flushcontext", "-t")
    assert done.returncode == 0, done.stderr
    assert is_activated(challenge, opened.read_bytes())


@needs_tpm2_tools
def test_tpm2_checkquote_and_openssl_take_what_our_attestation_key_signed(
    emulated: EmulatedTpm, place: TpmPlace, evidence: TpmEvidence, tmp_path: Path
) -> None:
    with place.opened(20) as tpm, tpm.primary(ENDORSEMENT, attestation_template()) as (handle, ak):
        quote, signature = tpm.quote(handle, [0, 7], b"a nonce")
    assert isinstance(ak.key, EllipticCurvePublicKey)
    assert signature_holds(ak.key, signature, quote)
    said = parse_attestation(quote)
    assert (said.extra_data, said.pcr_selection) == (b"a nonce", ((0x0B, b"\x81\0\0"),))
    assert said.pcr_digest == hashlib.sha256(bytes(64)).digest()  # of two registers that nothing was measured into
    (tmp_path / "ak.pem").write_text(public_pem(ak.key))
    (tmp_path / "quote").write_bytes(quote)
    r, s = (number.to_bytes(32, "big") for number in decode_dss_signature(signature))
    (tmp_path / "signature").write_bytes(bytes.fromhex("0018000b") + block(r) + block(s))
    check: list[str | Path] = [
        "tpm2_checkquote",
        "-u",
        tmp_path / "ak.pem",
        "-m",
        tmp_path / "quote",
        "-s",
        tmp_path / "signature",
    ]
    assert tool(emulated, *check, "-q", b"a nonce".hex()).returncode == 0
    assert tool(emulated, *check, "-q", b"no nonce".hex()).returncode != 0

    (tmp_path / "certification").write_bytes(evidence.certification)
    (tmp_path / "der").write_bytes(evidence.signature)
    verify: list[str | Path] = ["openssl", "dgst", "-sha256", "-verify", tmp_path / "ak.pem"]
    verify += ["-signature", tmp_path / "der"]
    assert tool(emulated, *verify, tmp_path / "certification").stdout == "Verified OK\n"
