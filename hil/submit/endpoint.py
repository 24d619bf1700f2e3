"""Where a dispatcher is, and who may give it orders: a rig's folder, or a URL and the file with its operator's token.

Looked at before anything is sent, and again for each use: a dispatcher makes a new token at each start.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from agent.errors import ConfigError, FleetError
from hil.dispatcher.orders import TOKEN_FILE

READY_FILE = "ready"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A dispatcher and its operator's token: in the folder of a rig, or at a URL and in a file."""

    folder: str = ""
    url: str = ""
    token_file: str = ""

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
