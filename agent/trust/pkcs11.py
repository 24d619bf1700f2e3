"""The unit's key in a PKCS#11 token: a secure element, a smart card or an HSM, through its maker's module.

Needs python-pkcs11 (the extra `pkcs11`), which is imported only when a key of this kind is opened. The key pair has one
label in the token; the private key has to be sensitive and not extractable, or it would be no better than a file, and
is refused. Without a key of that label one is made, in the token.

The module's calls cannot be interrupted, so the time limit is that of the thread which makes them (`agent.trust.
keyring`). A session stays open between signatures, since logging in may take a token longer than signing; after any
error it is given up, and the next use begins anew. A PIN that was refused is not tried again by this process: three
wrong ones lock a token for good.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from agent.errors import TrustError
from agent.trust.keyfile import read_secret
from agent.trust.keys import KeyAbsentError, KeyRefusedError, Removal, keyid, public_pem

if TYPE_CHECKING:
    from pkcs11 import Session

COORDINATE_BYTES = 32
POINT_BYTES = 1 + 2 * COORDINATE_BYTES
_OCTET_STRING = b"\x04\x41"
"""DER of an OCTET STRING of 65 bytes, in which most tokens wrap the point."""
_P256 = bytes.fromhex("06082a8648ce3d030107")
"""DER of the curve's object identifier, 1.2.840.10045.3.1.7."""
_REFUSALS = ("PinIncorrect", "PinLocked", "PinExpired", "PinInvalid", "PinLenRange", "UserPinNotInitialized")
_ABSENCES = ("NoSuchToken", "TokenNotPresent", "TokenNotRecognised", "DeviceRemoved", "DeviceError")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pkcs11Place:
    """Where the key is: the maker's module, the token's and the key's label, and the file that holds the PIN (0600)."""

    module: Path
    token: str
    key: str
    pin_file: Path


class Pkcs11Signer:
    """A signing key in a token; see `agent.ports.Signer`. Use from one thread."""

    protection = "pkcs11"

    def __init__(self, place: Pkcs11Place, session: Session, key: EllipticCurvePublicKey) -> None:
        self._place, self._key = place, key
        self._session: Session | None = session
        self.keyid = keyid(key)

    @classmethod
    def open(cls, place: Pkcs11Place, *, create: bool = False) -> Pkcs11Signer:
        """The key of its label, made now when there is none and `create`.

        Raises KeyAbsentError (no token, no key), KeyRefusedError (the PIN), TrustError (a key of another kind).
        """
        session = _session(place, writing=create)
        try:
            with _explained(place):
                return cls(place, session, _found_key(session, place, create=create))
        except BaseException:
            _close(session)
            raise

    @classmethod
    def remove(cls, place: Pkcs11Place, known_keyid: str) -> Removal:
        """Destroy the key pair in the token, which is for good; raises TrustError."""
        session = _session(place, writing=True)
        try:
            with _explained(place):
                return _destroyed(session, place, known_keyid)
        finally:
            _close(session)

    def public_key(self) -> EllipticCurvePublicKey:
        """The public key, as a verifier wants it."""
        return self._key

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        return public_pem(self._key)

    def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER; raises TrustError."""
        import pkcs11  # noqa: PLC0415 - an extra

        if self._session is None:
            self._session = _session(self._place, writing=False)
        try:
            with _explained(self._place):
                private: Any = _private_key(self._session, self._place)
                raw = private.sign(hashlib.sha256(message).digest(), mechanism=pkcs11.Mechanism.ECDSA)
        except TrustError:
            self.close()
            raise
        if len(raw) != 2 * COORDINATE_BYTES:
            raise TrustError(f"the token {self._place.token!r} answered a signature of {len(raw)} bytes")
        r, s = raw[:COORDINATE_BYTES], raw[COORDINATE_BYTES:]
        return encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))

    def close(self) -> None:
        """Log out; the next signature logs in again."""
        if self._session is not None:
            _close(self._session)
            self._session = None


def _session(place: Pkcs11Place, *, writing: bool) -> Session:
    """A session with the token, logged in; raises TrustError."""
    try:
        import pkcs11  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise TrustError("python-pkcs11 is not installed", hint="pip install 'driveway-agent[pkcs11]'") from error
    try:
        pin = read_secret(place.pin_file, most_bytes=256).decode("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TrustError(f"the PIN file {place.pin_file} cannot be read: {error}") from error
    with _explained(place):
        token = pkcs11.lib(str(place.module)).get_token(token_label=place.token)
        return token.open(rw=writing, user_pin=pin)


def _found_key(session: Session, place: Pkcs11Place, *, create: bool) -> EllipticCurvePublicKey:
    found = _public_key(session, place)
    if found is None and create:
        _make(session, place.key)
        found = _public_key(session, place)
    if found is None:
        raise KeyAbsentError(f"the token {place.token!r} has no key {place.key!r}", hint="was it replaced? enrol again")
    _check_private(session, place)
    return found


def _public_key(session: Session, place: Pkcs11Place) -> EllipticCurvePublicKey | None:
    """The public key of the label, None when there is none; raises TrustError for another kind."""
    import pkcs11  # noqa: PLC0415 - an extra
    from pkcs11 import Attribute, ObjectClass  # noqa: PLC0415 - an extra

    found = list(session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.LABEL: place.key}))
    if not found:
        return None
    if len(found) > 1:
        raise TrustError(f"the token {place.token!r} has {len(found)} keys {place.key!r}", hint="give another label")
    other = f"the key {place.key!r} in the token {place.token!r} is not ECDSA P-256"
    try:
        parameters, point = bytes(found[0][Attribute.EC_PARAMS]), bytes(found[0][Attribute.EC_POINT])
    except pkcs11.AttributeTypeInvalid as error:  # an RSA key has neither
        raise TrustError(other) from error
    if parameters != _P256:
        raise TrustError(other)
    try:
        return EllipticCurvePublicKey.from_encoded_point(
            SECP256R1(), point.removeprefix(_OCTET_STRING) if len(point) > POINT_BYTES else point
        )
    except ValueError as error:
        raise TrustError(other) from error


def _private_key(session: Session, place: Pkcs11Place) -> Any:
    from pkcs11 import Attribute, ObjectClass  # noqa: PLC0415 - an extra

    found = list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.LABEL: place.key}))
    if len(found) != 1:
        raise KeyAbsentError(f"the token {place.token!r} has {len(found)} private keys {place.key!r}, not one")
    return found[0]


def _destroyed(session: Session, place: Pkcs11Place, known_keyid: str) -> Removal:
    """The private key first: where a cut leaves only the public one, the next attempt finds that, and goes on."""
    from pkcs11 import Attribute, ObjectClass  # noqa: PLC0415 - an extra

    public = _public_key(session, place)
    if public is None:
        return Removal.ABSENT
    if keyid(public) != known_keyid:
        return Removal.FOREIGN
    for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
        for one in list(session.get_objects({Attribute.CLASS: kind, Attribute.LABEL: place.key})):
            one.destroy()
    return Removal.DONE


def _check_private(session: Session, place: Pkcs11Place) -> None:
    """The key must not be able to leave the token; raises TrustError."""
    from pkcs11 import Attribute  # noqa: PLC0415 - an extra

    private = _private_key(session, place)
    if private[Attribute.EXTRACTABLE] or not private[Attribute.SENSITIVE]:
        raise TrustError(
            f"the key {place.key!r} can be taken out of the token {place.token!r}: no better than a file",
            hint="give another label, and a key is made that cannot leave",
        )


def _make(session: Session, label: str) -> None:
    """A key pair that signs, and whose private part stays in the token."""
    from pkcs11 import Attribute, KeyType, MechanismFlag  # noqa: PLC0415 - an extra

    curve = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: _P256}, local=True)
    stays = {Attribute.EXTRACTABLE: False, Attribute.SENSITIVE: True}
    flags = MechanismFlag.SIGN | MechanismFlag.VERIFY
    curve.generate_keypair(label=label, store=True, capabilities=flags, private_template=stays)


def _close(session: Session) -> None:
    with contextlib.suppress(Exception):  # of a token that is gone nothing can be closed
        session.close()


@contextlib.contextmanager
def _explained(place: Pkcs11Place) -> Iterator[None]:
    """Turn what the module raises into TrustError, with what to do."""
    try:
        yield
    except TrustError:
        raise
    except Exception as error:
        name = type(error).__name__
        what = f"the token {place.token!r} ({place.module}): {name} {error}".rstrip()
        if name in _REFUSALS:
            hint = f"put the right PIN into {place.pin_file} and start the agent anew; it is not tried again"
            raise KeyRefusedError(what, hint=hint) from error
        if name in _ABSENCES:
            raise KeyAbsentError(what, hint="is it plugged in, and its module's service running?") from error
        raise TrustError(what, hint="is it the right module for this token?") from error
