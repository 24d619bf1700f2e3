"""What a recording must not hold: tokens that let somebody in, secrets in addresses, what the dispatcher enclosed.

    "token", "upload_token"            a bearer token: a placeholder
    "url", "input_url", "upload_url"   an address: its user, query and fragment become a placeholder, the rest stays
    "envelope"                         a verdict as it was signed, which may carry the next grant: a placeholder

The core compares such values and passes them on, and never looks into them. So each becomes a placeholder of its own,
the same one wherever it stands, and a recording without them replays to the same effects. Placeholders come from a
digest under a key that is made anew for each recorder and never written down: they cannot be guessed back, and two
recordings cannot be matched by them. This works on encoded JSON, where a member's name cannot occur inside a string.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re

TOKENS = ("token", "upload_token")
ADDRESSES = ("url", "input_url", "upload_url")
ENVELOPES = ("envelope",)
"""The members that are redacted, whatever they stand in."""
_HINTS = tuple(f'{name}":"'.encode() for name in ("token", "url", "envelope"))
_MEMBER = re.compile(
    rb'"(' + "|".join((*TOKENS, *ADDRESSES, *ENVELOPES)).encode() + rb')":"(?!")([^"\\]*(?:\\.[^"\\]*)*)"',
)
_ADDRESS = re.compile(rb"(?P<scheme>[^/?#]*//)?(?:(?P<user>[^/?#]*)@)?(?P<place>[^?#]*)(?P<rest>.*)", re.DOTALL)
_KEY_BYTES = 16
_DIGEST_BYTES = 6


class Redaction:
    """Replaces secrets in encoded JSON, consistently for as long as it lives."""

    def __init__(self) -> None:
        self._key = os.urandom(_KEY_BYTES)

    def of(self, text: bytes) -> bytes:
        """The same JSON without its secrets. Most texts have none, and come back as they are."""
        for hint in _HINTS:
            if hint in text:
                return _MEMBER.sub(self._member, text)
        return text

    def _member(self, found: re.Match[bytes]) -> bytes:
        name, value = found[1], found[2]
        kind = name.decode()
        if kind in ADDRESSES:
            safe = self._address(value)
        elif kind in ENVELOPES:
            safe = base64.b64encode(self._placeholder(value))  # bytes are base64 in JSON
        else:
            safe = self._placeholder(value)
        return b'"' + name + b'":"' + safe + b'"'

    def _address(self, url: bytes) -> bytes:
        parts = _ADDRESS.fullmatch(url)
        assert parts is not None, "every part may be missing"
        user, rest = parts["user"], parts["rest"]
        return b"".join(
            (
                parts["scheme"] or b"",
                b"" if user is None else self._placeholder(user) + b"@",
                parts["place"],
                b"?" + self._placeholder(rest) if rest else b"",
            )
        )

    def _placeholder(self, secret: bytes) -> bytes:
        digest = hashlib.blake2s(secret, digest_size=_DIGEST_BYTES, key=self._key)
        return b"redacted-" + digest.hexdigest().encode()
