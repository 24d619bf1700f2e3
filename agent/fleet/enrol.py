"""Enrolment, once: the unit's new key introduces itself to the dispatcher, which answers under its own.

The request is signed by the key it enrols (proof of possession) and carries a one-time code that the operator gave
the unit. The answer counts only under the dispatcher key that the configuration pins.
"""

from __future__ import annotations

import asyncio
import http

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from agent.errors import FleetError
from agent.fleet import messages
from agent.fleet.channel import Web
from agent.fleet.https import request
from agent.ports import Signer
from agent.trust import dsse


async def enrol(
    web: Web,
    *,
    url: str,
    code: str,
    unit: str,
    signer: Signer,
    dispatcher_keys: dict[str, EllipticCurvePublicKey],
) -> messages.Enrolled:
    """Introduce this unit; raises FleetError when the dispatcher refuses, TrustError when the answer is not its own."""
    asked = messages.Enrolment(
        code=code, unit=unit, public_key_pem=signer.public_key_pem(), key_protection=signer.protection
    )
    envelope = dsse.sign(messages.ENROLMENT_TYPE, msgspec.json.encode(asked), signer)
    status, answer = await asyncio.to_thread(request, web, "POST", url, envelope, messages.MAX_MESSAGE_BYTES)
    if status != http.HTTPStatus.OK:
        said = answer[:200].decode("utf-8", "replace")
        raise FleetError(f"the dispatcher at {url} refused to enrol this unit ({status}): {said}")
    payload = dsse.verify(answer, messages.ENROLMENT_TYPE, dispatcher_keys)
    try:
        enrolled = messages.decode(payload, messages.Enrolled)
    except messages.MessageError as error:
        raise FleetError(f"the dispatcher at {url} answered what is not understood: {error}") from error
    if enrolled.unit != unit or enrolled.keyid != signer.keyid:
        raise FleetError(f"the dispatcher at {url} enrolled {enrolled.unit!r}, not this unit {unit!r}")
    return enrolled
