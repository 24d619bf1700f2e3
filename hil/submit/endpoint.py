"""Where a dispatcher is, and who may give it orders: a rig's folder, or a URL and the file with its operator's token.

Looked at before anything is sent, and again for each use: a dispatcher makes a new token at each start.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from agent.errors import ConfigError, FleetError, TrustError
from agent.trust.dsse import VerifyingKey
from agent.trust.keys import keyid, load_verifying_key
from hil.dispatcher.orders import TOKEN_FILE

READY_FILE = "ready"
PUBLIC_KEY_FILE = "dispatcher.pub"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A dispatcher and its operator's token: in the folder of a rig, or at a URL and in a file.

    Its public key is in the folder, too, or in `key_file`.
    """

    folder: str = ""
    url: str = ""
    token_file: str = ""
    key_file: str = ""

    def keys(self) -> Mapping[str, VerifyingKey] | None:
        """The dispatcher's public keys by keyid; None where nobody has said. Raises ConfigError for what is no key."""
        path = Path(self.key_file) if self.key_file else Path(self.folder) / "dispatcher" / PUBLIC_KEY_FILE
        if not self.key_file and not self.folder:
            return None
        try:
            key = load_verifying_key(path.read_text("ascii"))
        except (OSError, UnicodeDecodeError, TrustError) as error:
            raise ConfigError(f"cannot read the dispatcher's public key {path}: {error}") from error
        return {keyid(key): key}

    def find(self) -> tuple[str, str]:
        """URL and token, as they are now. Raises FleetError, and ConfigError for what is no URL of a dispatcher."""
        if self.folder:
            return _of_rig(Path(self.folder))
        check_url(self.url)
        try:
            return self.url.rstrip("/"), Path(self.token_file).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            hint = "give the dispatcher's operator.token with --token-file"
            raise FleetError(f"cannot read the operator's token {self.token_file}: {error}", hint=hint) from error


def check_url(text: str) -> None:
    """Raises ConfigError for what is no HTTP address."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        good = good and not (parts.query or parts.fragment or parts.username) and text.isprintable() and " " not in text
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"{text!r} is no URL", hint="write http://127.0.0.1:8080")


def _of_rig(folder: Path) -> tuple[str, str]:
    """URL and token of the dispatcher of a rig."""
    try:
        where = msgspec.json.decode((folder / "dispatcher" / READY_FILE).read_bytes(), type=_Where)
        return where.http_url, (folder / "dispatcher" / TOKEN_FILE).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        hint = "start one with `driveway-hil demo --keep` and give its folder with --dir, or use --url and --token-file"
        raise FleetError(f"no dispatcher runs in {folder}", hint=hint) from error


class _Where(msgspec.Struct, frozen=True):
    http_url: str
