"""The chain from a maker's root to a TPM's endorsement key: what leads there, and every way in which it must not."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import TrustError
from agent.trust.tpm_enrolment import MAX_CHAIN, MAX_CHAIN_BYTES, TpmEvidence
from agent.trust.tpm_structures import endorsement_template
from agent.trust.tpm_wire import block
from hil.dispatcher.endorsement import check_endorsement

NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
YEAR = dt.timedelta(days=365)


@dataclass(frozen=True)
class Ca:
    """An authority: its key, and its certificate."""

    key: EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def issue(
    name: str,
    public: EllipticCurvePublicKey,
    by: Ca | EllipticCurvePrivateKey,
    *,
    ca: bool | None = True,
    length: int | None = None,
    signs: bool = True,
    until: dt.datetime = NOW + YEAR,
    odd: x509.ExtensionType | None = None,
    issuer: str = "",
) -> x509.Certificate:
    """A certificate; `ca` None: without basic constraints. A bare key signs its own."""
    key = by.key if isinstance(by, Ca) else by
    issuing = by.certificate.subject if isinstance(by, Ca) else named(issuer or name)
    built = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(issuing)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 3 * YEAR)
        .not_valid_after(until)
    )
    if ca is not None:
        built = built.add_extension(x509.BasicConstraints(ca, length), critical=True)
        usage = dict.fromkeys(USAGES, False) | {"key_cert_sign": signs}
        built = built.add_extension(x509.KeyUsage(**usage), critical=True)
    if odd is not None:
        built = built.add_extension(odd, critical=True)
    return built.sign(key, SHA256())


USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def authority(name: str, by: Ca | None = None, **changes: Any) -> x509.Certificate:
    """An authority's certificate, by itself where nobody else is named."""
    return made(name, by, **changes).certificate


def made(name: str, by: Ca | None = None, **changes: Any) -> Ca:
    key = generate_private_key(SECP256R1())
    return Ca(key, issue(name, key.public_key(), by or key, **changes))


EK = generate_private_key(SECP256R1())
ROOT, STRANGER = made("root"), made("stranger")
BETWEEN = made("between", ROOT)


def area(key: EllipticCurvePublicKey) -> bytes:
    """The TPM's public area of an endorsement key: the template with the key's point in it."""
    numbers, template = key.public_numbers(), endorsement_template(rsa=False)
    point = block(numbers.x.to_bytes(32, "big")) + block(numbers.y.to_bytes(32, "big"))
    return template[: -len(2 * block(bytes(32)))] + point


def evidence(by: Ca, *chain: bytes, **changes: Any) -> TpmEvidence:
    certificate = issue("chip", EK.public_key(), by, ca=None, **changes)
    return TpmEvidence(
        ek_certificate=certificate.public_bytes(Encoding.DER),
        ek=area(EK.public_key()),
        ak=b"",
        key=b"",
        certification=b"",
        signature=b"",
        ek_chain=chain,
    )


def holds(said: TpmEvidence, *makers: Ca) -> None:
    check_endorsement(said, [one.certificate for one in makers or (ROOT,)], NOW)


def test_a_root_leads_over_authorities_in_any_order_to_the_key() -> None:
    holds(evidence(ROOT))
    holds(evidence(BETWEEN, BETWEEN.der))
    second = made("second", BETWEEN)
    third = made("third", second)
    holds(evidence(third, BETWEEN.der, third.der, STRANGER.der, second.der))
    holds(evidence(third, third.der, second.der), STRANGER, BETWEEN)
    holds(evidence(BETWEEN), BETWEEN)


def test_of_two_certificates_of_one_authority_the_one_that_counts_is_taken() -> None:
    """Makers renew an authority with the same name and key."""
    renewed = issue("between", BETWEEN.key.public_key(), ROOT, until=NOW - YEAR).public_bytes(Encoding.DER)
    holds(evidence(BETWEEN, renewed, BETWEEN.der))
    with pytest.raises(TrustError, match="is not valid now"):
        holds(evidence(BETWEEN, renewed))


def _by_another_root() -> TpmEvidence:
    other = made("between", STRANGER)
    return evidence(other, other.der)


def _name_of_the_root() -> TpmEvidence:
    """A root of his own, with the name of the real one."""
    false = made("root")
    between = made("between", false)
    return evidence(between, between.der, false.der)


def _no_authority() -> TpmEvidence:
    """Another TPM's certificate, whose holder certifies an emulator."""
    leaf = made("chip", ROOT, ca=None)
    return evidence(leaf, leaf.der)


def _may_not_sign() -> TpmEvidence:
    between = made("between", ROOT, signs=False)
    return evidence(between, between.der)


def _not_ca() -> TpmEvidence:
    between = made("between", ROOT, ca=False, signs=False)
    return evidence(between, between.der)


def _too_deep() -> TpmEvidence:
    first = made("first", ROOT, length=0)
    second = made("second", first)
    return evidence(second, first.der, second.der)


def _over() -> TpmEvidence:
    between = made("between", ROOT, until=NOW - dt.timedelta(seconds=1))
    return evidence(between, between.der)


def _not_yet() -> TpmEvidence:
    return evidence(BETWEEN, BETWEEN.der)


def _odd() -> TpmEvidence:
    between = made("between", ROOT, odd=x509.NameConstraints([x509.DNSName("elsewhere.example")], None))
    return evidence(between, between.der)


def _loop() -> TpmEvidence:
    """Two authorities that certify each other, and nobody else does."""
    one, other = (generate_private_key(SECP256R1()) for _ in range(2))
    first = Ca(one, issue("one", one.public_key(), other, issuer="other"))
    second = Ca(other, issue("other", other.public_key(), one, issuer="one"))
    return evidence(first, first.der, second.der)


def _bent() -> TpmEvidence:
    der = bytearray(BETWEEN.der)
    der[-1] ^= 1
    return evidence(BETWEEN, bytes(der))


NONE = "none of the makers that are trusted issued the certificate"


@pytest.mark.parametrize(
    ("hostile", "said"),
    [
        (_by_another_root, NONE),
        (_name_of_the_root, NONE),
        (_no_authority, r"\('CN=chip' is no authority's\)"),
        (_not_ca, r"\('CN=between' is no authority's\)"),
        (_may_not_sign, r"\('CN=between' may not sign certificates\)"),
        (_too_deep, r"\('CN=first' allows 0 authorities below it, not 1\)"),
        (_over, r"\('CN=between' is not valid now\)"),
        (_odd, r"\('CN=between' has a critical extension that is not understood here\)"),
        (_loop, NONE),
        (_bent, NONE),
        (lambda: evidence(ROOT, until=NOW - dt.timedelta(seconds=1)), "the certificate is not valid now"),
        (lambda: evidence(ROOT, b"0\x82\0\0"), "not a certificate in between"),
        (lambda: replace(evidence(ROOT), ek_certificate=b""), "not a certificate: "),
        (lambda: replace(evidence(ROOT), ek=area(STRANGER.key.public_key())), "another TPM's"),
        (lambda: evidence(ROOT, *[BETWEEN.der] * (MAX_CHAIN + 1)), "a chain of more than 4 certificates"),
        (lambda: evidence(ROOT, BETWEEN.der + bytes(MAX_CHAIN_BYTES)), "or 6144 bytes"),
    ],
)
def test_what_leads_nowhere_is_refused_with_the_reason(hostile: Callable[[], TpmEvidence], said: str) -> None:
    with pytest.raises(TrustError, match=said):
        holds(hostile())


def test_before_it_begins_a_certificate_in_between_counts_as_little_as_after() -> None:
    with pytest.raises(TrustError, match="not valid now"):
        check_endorsement(_not_yet(), [ROOT.certificate], NOW - 4 * YEAR)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.data())
def test_bent_certificates_are_refused_and_nothing_else_happens(data: st.DataObject) -> None:
    der = bytearray(BETWEEN.der)
    for _ in range(data.draw(st.integers(1, 3))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    said = evidence(BETWEEN, bytes(der))
    if bytes(der) == BETWEEN.der:
        return
    with pytest.raises(TrustError):
        holds(said)
