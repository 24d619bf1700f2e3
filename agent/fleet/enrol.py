"""Enrolment and rotation: the unit's key introduces itself to the dispatcher, which answers under its own.

The first request is signed by the key it enrols (proof of possession) and carries a one-time code that the operator
gave the unit (`enrol`). Later the key may hand over to another (`rotate`): that goes to `succession` beside the
enrolment's URL. A key in a TPM is proven to be there (`agent.trust.tpm_enrolment`): the evidence goes along, the
dispatcher answers with a challenge, the TPM opens it, and what it found goes along with the same request again.

Every answer counts only under the dispatcher key that the configuration pins. Whatever breaks off may be said again,
all of it: the dispatcher answers the same.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import http
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from agent.errors import FleetError
from agent.fleet import enrolment_messages, messages
from agent.fleet.channel import TransientError, Web
from agent.fleet.https import TRANSIENT, request
from agent.trust import dsse
from agent.trust.csr import request_info, signed_request
from agent.trust.dsse import VerifyingKey
from agent.trust.hardware import IN_TPM, HardwareSigner
from agent.trust.tpm import MAKE_LIMIT_S, TpmPlace
from agent.trust.tpm_enrolment import activate, gather

REFUSED = (http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.FORBIDDEN)
"""The dispatcher's own word; anything else may be of somebody in between."""
STEPS = 3.0
"""Gathering evidence makes two keys and reads a certificate, each within the TPM's own limit."""

Told = TypeVar("Told", enrolment_messages.Enrolled, enrolment_messages.TpmChallenge)
Question = Callable[[enrolment_messages.TpmProof | None], Awaitable[bytes]]
"""The request's body, with this proof."""


class RefusedError(FleetError):
    """The dispatcher understood, and said no: saying it again is of no use."""


class Prover:
    """Shows that a key lives in a TPM; on the key's own thread, since a TPM does one thing after the other."""

    def __init__(self, key: HardwareSigner, place: TpmPlace, unit: str) -> None:
        self._key, self._place, self._unit = key, place, unit

    async def evidence(self) -> enrolment_messages.TpmProof:
        """For a certificate request that the key signs now; raises TrustError."""
        to_sign = request_info(self._unit, self._key.public_key_pem())
        asked = signed_request(to_sign, await self._key.sign(to_sign))
        found = await self._key.apart(lambda: gather(self._place, asked), limit_s=STEPS * MAKE_LIMIT_S)
        return enrolment_messages.TpmProof(
            request=_base64(asked),
            ek_certificate=_base64(found.ek_certificate),
            ek=_base64(found.ek),
            ak=_base64(found.ak),
            key=_base64(found.key),
            certification=_base64(found.certification),
            signature=_base64(found.signature),
            ek_chain=tuple(_base64(one) for one in found.ek_chain),
        )

    async def activated(
        self, proof: enrolment_messages.TpmProof, challenge: enrolment_messages.TpmChallenge
    ) -> enrolment_messages.TpmProof:
        """The proof with what the TPM found in the challenge; raises TrustError, FleetError for no base64."""
        ek, blob, seed = (_from_base64(one) for one in (proof.ek, challenge.blob, challenge.encrypted_seed))
        secret = await self._key.apart(lambda: activate(self._place, ek, blob, seed), limit_s=STEPS * MAKE_LIMIT_S)
        said = enrolment_messages.Activation(secret=_base64(secret), until_wall_ms=challenge.until_wall_ms)
        return msgspec.structs.replace(proof, activation=said)


def prover(key: HardwareSigner, place: TpmPlace, unit: str) -> Prover | None:
    """What proves where the key lives; None for one that is in no TPM."""
    return Prover(key, place, unit) if key.protection in IN_TPM else None


@dataclass(frozen=True, slots=True)
class _Exchange:
    """Whom it is said to, and about which key."""

    web: Web
    url: str
    unit: str
    key: HardwareSigner
    dispatcher_keys: Mapping[str, VerifyingKey]


async def enrol(
    web: Web,
    *,
    url: str,
    code: str,
    unit: str,
    key: HardwareSigner,
    place: TpmPlace,
    dispatcher_keys: Mapping[str, VerifyingKey],
) -> enrolment_messages.Enrolled:
    """Introduce this unit's key, which is at `place` where it is in a TPM.

    Raises RefusedError when the dispatcher refuses, TransientError or FleetError when it does not answer, TrustError
    when the answer is not its own, or the key does not sign.
    """

    async def question(proof: enrolment_messages.TpmProof | None) -> bytes:
        asked = enrolment_messages.Enrolment(
            code=code, unit=unit, public_key_pem=key.public_key_pem(), key_protection=key.protection, tpm=proof
        )
        payload = messages.encode(asked)
        signature = await key.sign(dsse.pae(enrolment_messages.ENROLMENT_TYPE, payload))
        return dsse.wrap(enrolment_messages.ENROLMENT_TYPE, payload, (dsse.Signature(key.keyid, signature),))

    return await _asked(_Exchange(web, url, unit, key, dispatcher_keys), question, prover(key, place, unit))


async def rotate(
    web: Web,
    *,
    url: str,
    succession: bytes,
    unit: str,
    key: HardwareSigner,
    place: TpmPlace,
    dispatcher_keys: Mapping[str, VerifyingKey],
) -> enrolment_messages.Enrolled:
    """Say that the unit's key hands over to `key` (`succession`: both signed it); raises as `enrol` does.

    `url` is the enrolment's.
    """
    envelope = msgspec.json.decode(succession, type=messages.Envelope)

    async def question(proof: enrolment_messages.TpmProof | None) -> bytes:
        return messages.encode(enrolment_messages.Rotation(succession=envelope, tpm=proof))

    beside = urllib.parse.urljoin(url, "succession")
    return await _asked(_Exchange(web, beside, unit, key, dispatcher_keys), question, prover(key, place, unit))


async def _asked(exchange: _Exchange, question: Question, by: Prover | None) -> enrolment_messages.Enrolled:
    """The question, with the proof that it takes; what was answered in the end."""
    proof = None if by is None else await by.evidence()
    answer = await _post(exchange, await question(proof))
    if (
        by is not None
        and proof is not None
        and dsse.parse(answer).payload_type == enrolment_messages.TPM_CHALLENGE_TYPE
    ):
        challenge = _opened(exchange, answer, enrolment_messages.TPM_CHALLENGE_TYPE, enrolment_messages.TpmChallenge)
        answer = await _post(exchange, await question(await by.activated(proof, challenge)))
    return _opened(exchange, answer, enrolment_messages.ENROLMENT_TYPE, enrolment_messages.Enrolled)


async def _post(exchange: _Exchange, body: bytes) -> bytes:
    url = exchange.url
    status, answer = await asyncio.to_thread(request, exchange.web, "POST", url, body, messages.MAX_MESSAGE_BYTES)
    if status == http.HTTPStatus.OK:
        return answer
    said = answer[:200].decode("utf-8", "replace")
    what = f"the dispatcher at {url} refused to enrol this unit ({status}): {said}"
    if status in REFUSED:
        raise RefusedError(what)
    raise TransientError(what) if status in TRANSIENT else FleetError(what)


def _opened(exchange: _Exchange, answer: bytes, payload_type: str, kind: type[Told]) -> Told:
    """What the dispatcher signed about this unit and key."""
    url, unit = exchange.url, exchange.unit
    payload = dsse.verify(answer, payload_type, exchange.dispatcher_keys)
    try:
        told = messages.decode(payload, kind)
    except messages.MessageError as error:
        raise FleetError(f"the dispatcher at {url} answered what is not understood: {error}") from error
    if told.unit != unit or told.keyid != exchange.key.keyid:
        raise FleetError(f"the dispatcher at {url} enrolled {told.unit!r}, not this unit {unit!r}")
    return told


def _base64(body: bytes) -> str:
    return base64.b64encode(body).decode("ascii")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FleetError("the dispatcher's challenge is not base64") from error
