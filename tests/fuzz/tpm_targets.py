"""What a TPM answers, and what a unit shows of it, fuzzed from the true words of swtpm.

A body of `tpm` is one byte that says which use of the TPM is made, and its replies one behind another, each as long as
its own header says; a header that does not fit is mended, so that the fuzzer gets to what is inside.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from agent.trust.csr import certificate_request
from agent.trust.tpm import TpmPlace, TpmSigner
from agent.trust.tpm_commands import ENDORSEMENT, Tpm
from agent.trust.tpm_enrolment import gather
from agent.trust.tpm_structures import attestation_template, parse_attestation
from agent.trust.tpm_wire import block
from hil.dispatcher.credential import check_evidence
from hil.emulated_keys import EmulatedTpm
from tests.fuzz.targets import UNIT, Target
from tests.trust.hardware_keys import scripted
from tests.trust.test_tpm_replies import HANDLE, USES, Recording

HEADER_BYTES = 10
FIELDS = ("ek", "ak", "key", "certification", "signature")


def certify(tpm: Tpm) -> object:
    with tpm.primary(ENDORSEMENT, attestation_template()) as (handle, _):
        return parse_attestation(tpm.certify(HANDLE, handle, b"q")[0])


def quote(tpm: Tpm) -> object:
    with tpm.primary(ENDORSEMENT, attestation_template()) as (handle, _):
        return parse_attestation(tpm.quote(handle, [0, 7], b"q")[0])


TRIED: tuple[Callable[[Tpm], object], ...] = (
    USES["read_public"],
    USES["sign"],
    USES["facts"],
    USES["read_nv"],
    certify,
    quote,
)


def replies() -> Target:
    """Every use of a TPM, given any replies."""

    def take(body: bytes) -> object:
        with scripted(*split(body[1:]), limit_s=0.01) as tpm:
            return TRIED[body[0] % len(TRIED) if body else 0](tpm)

    with emulated() as address:
        seeds = [bytes([number]) + b"".join(recorded(address, use)) for number, use in enumerate(TRIED)]
    return Target(take, seeds)


@contextlib.contextmanager
def emulated() -> Iterator[str]:
    """The address of a TPM with a unit's key in it."""
    with tempfile.TemporaryDirectory() as folder, EmulatedTpm(Path(folder)) as tpm:
        TpmSigner.open_or_create(TpmPlace(device=tpm.address))
        yield tpm.address


def recorded(address: str, use: Callable[[Tpm], object]) -> list[bytes]:
    """The TPM's true replies to one use."""
    found: list[bytes] = []
    with Tpm(lambda _deadline: Recording(address, found), 20) as tpm:
        use(tpm)
    return found


def split(body: bytes) -> list[bytes]:
    """Up to eight replies, the last one whatever is left."""
    found: list[bytes] = []
    while len(found) < 8 and (body or not found):
        end = max(HEADER_BYTES, int.from_bytes(body[2:6], "big"))
        one = bytearray(body[:end].ljust(HEADER_BYTES, b"\0"))
        one[2:6] = len(one).to_bytes(4, "big")
        found.append(bytes(one))
        body = body[end:]
    return found


def evidence() -> Target:
    """What a unit shows of its key, for one certificate request: no other key passes, and no other attestation."""
    with emulated() as address:
        place = TpmPlace(device=address)
        request = certificate_request(UNIT, TpmSigner.open(place))
        honest = gather(place, request)
    attested = check_evidence(honest, request)

    def take(body: bytes) -> object:
        fields = dict[str, bytes]()
        for name in FIELDS:
            end = 2 + int.from_bytes(body[:2], "big")
            fields[name], body = body[2:end], body[end:]
        shown = replace(honest, **fields)  # type: ignore[arg-type]  # the fields that are bytes
        said = check_evidence(shown, request)
        return said.keyid, said.attestation

    seed = b"".join(block(getattr(honest, name)) for name in FIELDS)
    return Target(take, [seed], ((attested.keyid, attested.attestation),))
