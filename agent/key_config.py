"""`[trust.key]`: where the unit's own key lives, as the configuration says it (docs/keys.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from agent.trust.keyring import Backend, KeyConfig
from agent.trust.pkcs11 import Pkcs11Place
from agent.trust.tpm import DEFAULT_DEVICE, DEFAULT_HANDLE, HANDLES, SIGN_LIMIT_S, TpmPlace

KEY_FILE = "unit.key"
"""Of the `file` backend, in `state_dir`."""


class TpmSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The TPM, for the backend `tpm`."""

    device: str = DEFAULT_DEVICE
    """`/dev/tpmrm0`; on a rig also `unix:PATH` or `tcp:HOST:PORT` of an emulator."""
    handle: Annotated[int, msgspec.Meta(ge=HANDLES.start, lt=HANDLES.stop)] = DEFAULT_HANDLE
    """The persistent handle; a key that succeeds another takes the next."""
    kind: Literal["auto", "tpm", "ftpm"] = "auto"
    """Whether it is a chip of its own, or firmware beside what it guards; `auto`: by its maker."""
    owner_auth_file: str = ""
    """Holds the owner hierarchy's password (0600), where it has one: needed to make a key."""
    ek_chain_file: str = ""
    """Certificates (PEM or DER) between the endorsement key's and its maker's root, where the TPM has none of them."""
    limit_s: Annotated[float, msgspec.Meta(ge=0.1, le=60)] = SIGN_LIMIT_S
    """How long one use of it may take."""


class Pkcs11Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The token, for the backend `pkcs11`."""

    module: str
    """The maker's library, as /usr/lib/softhsm/libsofthsm2.so."""
    token: str
    """The token's label."""
    pin_file: str
    """Holds the PIN (0600)."""
    key: str = "driveway"
    """The key pair's label; a key that succeeds another has `-2` and so on behind it."""


class KeySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which kind of key, and where."""

    backend: Backend = "file"
    tpm: TpmSection = TpmSection()
    pkcs11: Pkcs11Section | None = None

    def __post_init__(self) -> None:
        if self.backend == "pkcs11" and self.pkcs11 is None:
            raise ValueError("backend pkcs11 needs a [trust.key.pkcs11] section: module, token and pin_file")

    def resolved(self, state_dir: Path, path: Callable[[str], Path]) -> KeyConfig:
        """The same with its files found; `path` finds one that the configuration names."""
        tpm, token = self.tpm, self.pkcs11
        return KeyConfig(
            backend=self.backend,
            file=state_dir / KEY_FILE,
            tpm=TpmPlace(
                device=tpm.device,
                handle=tpm.handle,
                kind="" if tpm.kind == "auto" else tpm.kind,
                owner_auth_file=path(tpm.owner_auth_file) if tpm.owner_auth_file else None,
                ek_chain_file=path(tpm.ek_chain_file) if tpm.ek_chain_file else None,
                limit_s=tpm.limit_s,
            ),
            pkcs11=None
            if token is None
            else Pkcs11Place(
                module=path(token.module), token=token.token, key=token.key, pin_file=path(token.pin_file)
            ),
        )
