"""DSSE v1 envelopes (https://github.com/secure-systems-lab/dsse): how everything signed here travels.

The signature covers the payload's bytes and its type through the pre-authentication encoding (PAE), so a grant can
never pass for a verdict. What we sign with is ECDSA P-256 over SHA-256 in DER: every TPM, PKCS#11 token and independent
verifier has it. Signatures of Ed25519 are verified too, for publishers and operators who keep such keys in files. The
algorithm belongs to the key, never to the message.

`verify` returns exactly the bytes whose signature holds; parse those and nothing else. `keyid` only says which
trusted key to try. `strict_json` is the profile that what we sign has to meet, because JSON parsers disagree about the
rest: duplicate keys, keys that differ in case (Go matches them), floats and large integers, NaN, lone surrogates,
deep nesting.

All failures are `TrustError`. Nothing is parsed, decoded or hashed before its size is known to be small.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol, assert_never

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from agent.errors import TrustError

MAX_BYTES = 64 * 1024
"""An envelope or payload; four times the largest message, since stored statements may come from other paths."""
MAX_DEPTH = 16
MAX_SIGNATURES = 4
MAX_MARKS = 256
"""Brackets, commas, colons and quotes in an envelope: four signatures make about seventy. Thousands of tiny values in
a few kilobytes cost ten times what as many bytes of base64 do, and are counted before any of them is looked at."""
MAX_INTEGER = 2**53 - 1
"""Above this, JavaScript and Go's float64 silently change a number."""

VerifyingKey = EllipticCurvePublicKey | Ed25519PublicKey
"""A public key that somebody trusts: P-256 (`agent.trust.keys` lets no other curve in), or Ed25519."""

JsonValue = None | bool | int | str | list["JsonValue"] | dict[str, "JsonValue"]

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
"""A string, closed or not: were the end required, one unclosed string would be scanned again from each quote in it."""
_MARKS = b'{[,:"'
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class SigningKey(Protocol):
    """What signing needs of a key; `agent.ports.Signer` has it."""

    @property
    def keyid(self) -> str:
        """SHA-256 of the public key's SubjectPublicKeyInfo, as hex."""
        ...

    def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER."""
        ...


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature of an envelope."""

    keyid: str
    sig: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope that was parsed and not verified."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]


def pae(payload_type: str, payload: bytes) -> bytes:
    """The pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: bytes, key: SigningKey) -> bytes:
    """A JSON envelope around `payload`, signed by `key`; raises TrustError when it would be too large to verify."""
    return wrap(payload_type, payload, (Signature(key.keyid, key.sign(pae(payload_type, payload))),))


def add_signature(envelope: bytes, key: SigningKey) -> bytes:
    """The envelope with another signature over the same payload; raises TrustError. Verify what is in it first."""
    parsed = parse(envelope)
    added = Signature(key.keyid, key.sign(pae(parsed.payload_type, parsed.payload)))
    others = tuple(one for one in parsed.signatures if one.keyid != key.keyid)
    return wrap(parsed.payload_type, parsed.payload, (*others, added))


def wrap(payload_type: str, payload: bytes, signatures: Sequence[Signature]) -> bytes:
    """A JSON envelope with signatures that were made before; raises TrustError when nobody would look at it."""
    if len(signatures) > MAX_SIGNATURES:
        raise TrustError(f"an envelope with {len(signatures)} signatures; at most {MAX_SIGNATURES} are looked at")
    entries = [{"keyid": one.keyid, "sig": to_base64(one.sig)} for one in signatures]
    envelope = {"payload": to_base64(payload), "payloadType": payload_type, "signatures": entries}
    body = json.dumps(envelope, separators=(",", ":")).encode("ascii")
    if len(body) > MAX_BYTES:
        raise TrustError(f"an envelope of {len(body)} bytes is larger than the {MAX_BYTES} anybody will verify")
    return body


def verify(envelope: bytes, payload_type: str, keys: Mapping[str, VerifyingKey]) -> bytes:
    """The payload of a JSON envelope that one of the trusted `keys` (by keyid) signed as `payload_type`.

    Raises TrustError: not an envelope, another type, or no signature that holds.
    """
    parsed = parse(envelope)
    if parsed.payload_type != payload_type:
        raise TrustError(f"the envelope holds a {parsed.payload_type!r}, expected {payload_type!r}")
    message = pae(payload_type, parsed.payload)
    for signature in parsed.signatures:
        key = keys.get(signature.keyid)
        if key is not None and signature_holds(key, signature.sig, message):
            return parsed.payload
    raise TrustError("no signature on the envelope was made by a trusted key over these bytes")


def signers(envelope: bytes, keys: Mapping[str, VerifyingKey]) -> set[str]:
    """The keyids of those of `keys` that signed what is in the envelope; raises TrustError when it is none."""
    parsed = parse(envelope)
    message = pae(parsed.payload_type, parsed.payload)
    trusted = ((one.keyid, keys[one.keyid], one.sig) for one in parsed.signatures if one.keyid in keys)
    return {keyid for keyid, key, sig in trusted if signature_holds(key, sig, message)}


def signature_holds(key: VerifyingKey, sig: bytes, message: bytes) -> bool:
    """Whether `sig` is `key`'s signature over `message`: ECDSA over its SHA-256, in DER, or Ed25519."""
    try:
        match key:
            case EllipticCurvePublicKey():
                key.verify(sig, message, ECDSA(SHA256()))
            case Ed25519PublicKey():
                key.verify(sig, message)
            case _:
                assert_never(key)
    except InvalidSignature:
        return False
    return True


def parse(envelope: bytes) -> Envelope:
    """Read a JSON envelope without trusting it; raises TrustError. Unknown fields are ignored, as DSSE asks."""
    if len(envelope) > MAX_BYTES:
        raise TrustError(f"an envelope of {len(envelope)} bytes, more than the {MAX_BYTES} that are looked at")
    if (marks := count_marks(envelope)) > MAX_MARKS:
        raise TrustError(f"not a DSSE envelope: {marks} brackets, commas, colons and quotes, more than {MAX_MARKS}")
    match strict_json(envelope):
        case {"payload": str(payload), "payloadType": str(payload_type), "signatures": [_, *_] as signatures}:
            pass
        case _:
            raise TrustError("not a DSSE envelope: payload, payloadType or signatures is missing or of another type")
    if len(signatures) > MAX_SIGNATURES:
        raise TrustError(f"an envelope with {len(signatures)} signatures; at most {MAX_SIGNATURES} are looked at")
    return Envelope(payload_type, from_base64(payload), tuple(_signature(entry) for entry in signatures))


def count_marks(body: bytes) -> int:
    """How many brackets, commas, colons and quotes there are: about as many values as a parser would make."""
    return len(body) - len(body.translate(None, _MARKS))


def strict_json(body: bytes, max_bytes: int = MAX_BYTES) -> JsonValue:
    """Parse JSON that means the same to every parser; raises TrustError that names the offence.

    Refused: more than `max_bytes`, deeper than 16, not UTF-8, floats, NaN, integers beyond 2^53-1, duplicate keys, keys
    that differ in case only, keys that are not ASCII, lone surrogates.
    """
    if len(body) > max_bytes:
        raise TrustError(f"{len(body)} bytes of JSON, more than the {max_bytes} that are looked at")
    if _depth(body) > MAX_DEPTH:
        raise TrustError(f"JSON nested deeper than {MAX_DEPTH}")
    try:
        value: JsonValue = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_no_float,
            parse_constant=_no_float,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # refuses lone surrogates
    except (UnicodeError, json.JSONDecodeError) as error:
        raise TrustError(f"not strict JSON: {error}") from error
    return value


def canonical_json(value: JsonValue) -> bytes:
    """The one way we write JSON that is signed: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def _signature(entry: JsonValue) -> Signature:
    match entry:
        case {"keyid": str(keyid), "sig": str(sig)}:
            return Signature(keyid, from_base64(sig))
        case _:
            raise TrustError("not a DSSE signature: keyid or sig is missing or of another type")


def _depth(body: bytes) -> int:
    """How deep the brackets nest outside of strings: a bound on what the recursive parser is about to do."""
    depth = deepest = 0
    for bracket in _STRING.sub(b"", body).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    seen: set[str] = set()
    for key, _ in pairs:
        if not key.isascii():
            raise TrustError(f"not strict JSON: key {key!a} is not ASCII")
        if key.lower() in seen:
            raise TrustError(f"not strict JSON: key {key!a} occurs twice (upper and lower case count as one)")
        seen.add(key.lower())
    return dict(pairs)


def _integer(digits: str) -> int:
    if len(digits) > len(str(-MAX_INTEGER)) or abs(int(digits)) > MAX_INTEGER or digits == "-0":
        raise TrustError(f"not strict JSON: {digits[:24]} is not an integer that every parser reads alike")
    return int(digits)


def _no_float(digits: str) -> NoReturn:
    raise TrustError(f"not strict JSON: {digits[:24]} is not an integer")


def to_base64(data: bytes) -> str:
    """Standard base64."""
    return base64.b64encode(data).decode("ascii")


def from_base64(text: str) -> bytes:
    """Standard or URL-safe base64, as DSSE allows, in its one canonical spelling; raises TrustError."""
    standard = text.replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(standard, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TrustError(f"not base64: {error}") from error
    if to_base64(data) != standard:
        raise TrustError("not base64 in its canonical spelling")
    return data
