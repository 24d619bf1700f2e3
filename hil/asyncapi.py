"""`dw/v1` as an AsyncAPI 3 document, made from the message types: `python -m hil.asyncapi` writes docs/asyncapi.json.

`CONTRACT` says of every message what its type cannot: the topic, who sends it, with which quality of service, for how
long a broker may keep it, and an example. Tests hold the document, the desk and the examples against it.

Everything that the dispatcher sends is a DSSE envelope: the message on the topic is the envelope (`payload`), and what
is inside is named by `x-signed-payload`, with `x-payload-type` as DSSE's payload type.
What each field means is in `hil.asyncapi_fields`. Property names carry their units (`_s` seconds, `_ms` milliseconds,
`_wh` watt-hours, `_micro` millionths of the currency, `bytes`); the document repeats them as `x-unit`.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec

from agent.core.model import JobKey, Outlook, PaceState, Verdict, YieldReason
from agent.fleet import messages, operator_messages
from hil.asyncapi_fields import meaning

FILE = Path(__file__).parents[1] / "docs" / "asyncapi.json"
UNITS = {
    "_s": "s",
    "_ms": "ms",
    "_wh": "Wh",
    "_bytes": "byte",
    "_permille": "1/1000",
    "_micro": "currency/1000000",
    "_micro_per_item": "currency/1000000/item",
    "_micro_per_kwh": "currency/1000000/kWh",
}

Upward = (
    messages.Status
    | messages.Request
    | messages.Renew
    | messages.Result
    | messages.Yield
    | messages.CheckpointMessage
    | messages.SealingKeyMessage
)
Downward = (
    messages.GrantMessage
    | messages.VerdictMessage
    | operator_messages.CancelMessage
    | operator_messages.PricesMessage
    | operator_messages.DemandMessage
    | operator_messages.PaceMessage
    | messages.WitnessMessage
)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the contract. `expires` is what the sender sets as the Message Expiry Interval, in words."""

    verb: str
    example: Upward | Downward
    expires: str
    qos: int = 1
    retain: bool = False
    payload_type: str = ""
    answered_by: str = ""

    @property
    def name(self) -> str:
        """The type's name."""
        return type(self.example).__name__

    @property
    def address(self) -> str:
        """The topic, with its parameters."""
        if isinstance(self.example, Upward):
            return f"dw/v1/u/{{cell}}/{{unit}}/{self.verb}"
        return "dw/v1/b/{cell}/pace" if self.verb == "pace" else f"dw/v1/d/{{unit}}/{self.verb}"


DIGEST = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
KEY = JobKey("job-3f2a", 2)
OUTLOOK = Outlook(open_for_s=16_200, budget_bytes=40_000_000)
JOB = messages.JobGrant(
    job=KEY.job,
    epoch=KEY.epoch,
    nonce="9f1c2d3e4b5a69788796a5b4c3d2e1f0",
    customer="acme",
    package=messages.PackageRef(name="ocr", sha256=DIGEST),
    input=messages.ObjectRef(url=f"https://objects.example/{DIGEST}", sha256=DIGEST, bytes=1_200_000),
    items=64,
    slice_items=16,
    slices=(0, 1, 2, 3),
    ttl_s=900,
    price_micro_per_item=25,
    currency="USD",
    workload_class="ocr",
    expected_s=240,
    upload=messages.UploadRef(url="https://objects.example/up", token="c29tZS1vcGFxdWUtdG9rZW4"),  # noqa: S106 - an example
)
STATEMENT = messages.Envelope(
    payload=base64.b64encode(b'{"_type":"https://in-toto.io/Statement/v1"}').decode("ascii"),
    payloadType="application/vnd.in-toto+json",
    signatures=(messages.Signature(keyid=DIGEST, sig="MEUCIQD0"),),
)
SESSION = messages.Envelope(
    payload=base64.b64encode(b'{"session":7,"unit":"car-0001"}').decode("ascii"),
    payloadType="application/vnd.driveway.session+json",
    signatures=(messages.Signature(keyid=DIGEST, sig="MEUCIQD0"),),
)
CHECKPOINT = messages.Envelope(
    payload=base64.b64encode(b'{"size":192,"unit":"car-0001"}').decode("ascii"),
    payloadType="application/vnd.driveway.checkpoint+json",
    signatures=(messages.Signature(keyid=DIGEST, sig="MEUCIQD0"),),
)
SEALING_KEY = messages.Envelope(
    payload=base64.b64encode(b'{"epoch":1774000000,"unit":"car-0001"}').decode("ascii"),
    payloadType="application/vnd.driveway.sealing-key+json",
    signatures=(messages.Signature(keyid=DIGEST, sig="MEUCIQD0"),),
)
OUTPUTS = (
    messages.SliceOutput(index=0, body=base64.b64encode(b'[{"text":"EXIT"}]').decode("ascii")),
    messages.SliceOutput(index=1, uploaded=messages.UploadedObject(sha256=DIGEST, bytes=48_000)),
)
CAPABILITY = messages.Capability(device_class="thor", executor="tensorrt", packages=(DIGEST,), classes=("ocr",))
ISSUED_MS = 1_774_000_000_000

CONTRACT: tuple[Entry, ...] = (
    Entry(
        verb="status",
        example=messages.Status(state="up", boot="6c1f0f5e", conn=3, version="0.1.0"),
        expires="never; also the will, with state `lost`",
    ),
    Entry(
        verb="request",
        example=messages.Request(rid="car-0001-7-12", have=(KEY,), credit=1, cap=CAPABILITY, outlook=OUTLOOK),
        expires="60 s",
        answered_by="GrantMessage",
    ),
    Entry(
        verb="renew",
        example=messages.Renew(rid="car-0001-7-13", job=KEY.job, epoch=KEY.epoch, done=2, have=(KEY,)),
        expires="60 s",
        qos=0,
        answered_by="GrantMessage",
    ),
    Entry(
        verb="result",
        example=messages.Result(
            rid="job-3f2a-2",
            job=KEY.job,
            epoch=KEY.epoch,
            statement=STATEMENT,
            outputs=OUTPUTS,
            have=(KEY,),
            credit=1,
            outlook=OUTLOOK,
            session=SESSION,
        ),
        expires="never: it is sent again until a verdict comes",
        answered_by="VerdictMessage",
    ),
    Entry(
        verb="yield",
        example=messages.Yield(
            rid="job-3f2a-2",
            job=KEY.job,
            epoch=KEY.epoch,
            why=YieldReason.DRIVER,
            detail="door_open",
            statement=STATEMENT,
            outputs=OUTPUTS[:1],
            session=SESSION,
        ),
        expires="never: it is sent again until a verdict comes",
        answered_by="VerdictMessage",
    ),
    Entry(
        verb="checkpoint",
        example=messages.CheckpointMessage(
            rid="5e1f0c2b9a87d643", checkpoint=CHECKPOINT, from_size=128, proof=(DIGEST,)
        ),
        expires="300 s: sent again until it is witnessed",
        answered_by="WitnessMessage",
    ),
    Entry(
        verb="sealing",
        example=messages.SealingKeyMessage(sealing_key=SEALING_KEY),
        expires="300 s: sent when the link comes up, and when a grant asks for it",
    ),
    Entry(
        verb="grant",
        example=messages.GrantMessage(rid="car-0001-7-12", unit="car-0001", job=JOB),
        expires="the lease's `ttl_s`; 60 s without a job",
        payload_type=messages.GRANT_TYPE,
    ),
    Entry(
        verb="verdict",
        example=messages.VerdictMessage(
            rid="job-3f2a-2",
            unit="car-0001",
            job=KEY.job,
            epoch=KEY.epoch,
            verdict=Verdict.SETTLED,
            paid_micro=1_600,
            statement_sha256=DIGEST,
            next_grant=msgspec.structs.replace(JOB, job="job-3f2b", epoch=1),
        ),
        expires="300 s",
        payload_type=messages.VERDICT_TYPE,
    ),
    Entry(
        verb="witness",
        example=messages.WitnessMessage(
            rid="5e1f0c2b9a87d643",
            unit="car-0001",
            checkpoint=msgspec.structs.replace(CHECKPOINT, signatures=2 * CHECKPOINT.signatures),
        ),
        expires="300 s",
        payload_type=messages.WITNESS_TYPE,
    ),
    Entry(
        verb="cancel",
        example=operator_messages.CancelMessage(
            unit="car-0001", job=KEY.job, epoch=KEY.epoch, grace_s=30, why="withdrawn"
        ),
        expires="`grace_s` and another 60 s",
        payload_type=operator_messages.CANCEL_TYPE,
    ),
    Entry(
        verb="config",
        example=operator_messages.PricesMessage(
            unit="car-0001",
            issued_wall_ms=ISSUED_MS,
            expires_wall_ms=ISSUED_MS + 86_400_000,
            slots=(operator_messages.PricesSlot(ISSUED_MS, ISSUED_MS + 3_600_000, 182_000),),
        ),
        expires="300 s: sent again whenever the unit's link comes up",
        payload_type=operator_messages.PRICES_TYPE,
    ),
    Entry(
        verb="config",
        example=operator_messages.DemandMessage(
            unit="car-0001", issued_wall_ms=ISSUED_MS, stop_for_s=900, detail="feeder 12"
        ),
        expires="300 s: sent again whenever the unit's link comes up",
        payload_type=operator_messages.DEMAND_TYPE,
    ),
    Entry(
        verb="pace",
        example=operator_messages.PaceMessage(cell="0a", issued_wall_ms=ISSUED_MS, state=PaceState.OPEN, spread_s=900),
        expires="never: retained",
        retain=True,
        payload_type=operator_messages.PACE_TYPE,
    ),
)


def document() -> dict[str, Any]:
    """The whole AsyncAPI 3.0.0 document."""
    kinds = [type(entry.example) for entry in CONTRACT]
    _, schemas = msgspec.json.schema_components([*kinds, messages.Envelope], ref_template="#/components/schemas/{name}")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Driveway lease protocol dw/v1",
            "version": f"{messages.VERSION}.0.0",
            "description": "Between a parked car and the fleet's dispatcher, over MQTT 5. The broker is a lossy, "
            "duplicating, reordering pipe; see protocol.md. Written by `python -m hil.asyncapi`.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "fleet": {
                "host": "broker.example:8883",
                "protocol": "secure-mqtt",
                "protocolVersion": "5.0",
                "security": [{"$ref": "#/components/securitySchemes/mutualTls"}],
                "bindings": {
                    "mqtt": {
                        "cleanSession": True,
                        "keepAlive": 300,
                        "sessionExpiryInterval": 0,
                        "maximumPacketSize": 65_536,
                        "bindingVersion": "0.2.0",
                    }
                },
            }
        },
        "channels": _channels(),
        "operations": {_camel(entry.name): _operation(entry) for entry in CONTRACT},
        "components": {
            "securitySchemes": {"mutualTls": {"type": "X509"}},
            "messages": {entry.name: _message(entry) for entry in CONTRACT},
            "schemas": {name: _told(name, schema) for name, schema in schemas.items()},
        },
    }


def _channels() -> dict[str, Any]:
    about = {
        "unit": {"description": "the car's pseudonym: the certificate's common name and the client id"},
        "cell": {"description": "two hexadecimal digits, fixed at enrolment"},
    }
    channels: dict[str, Any] = {}
    for entry in CONTRACT:
        named = [one for one in about if f"{{{one}}}" in entry.address]
        channel = channels.setdefault(
            entry.verb,
            {"address": entry.address, "parameters": {one: about[one] for one in named}, "messages": {}},
        )
        channel["messages"][entry.name] = {"$ref": f"#/components/messages/{entry.name}"}
    return channels


def _operation(entry: Entry) -> dict[str, Any]:
    """As the car sees it: it sends upward and receives the rest."""
    upward = isinstance(entry.example, Upward)
    operation: dict[str, Any] = {
        "action": "send" if upward else "receive",
        "channel": {"$ref": f"#/channels/{entry.verb}"},
        "messages": [{"$ref": f"#/channels/{entry.verb}/messages/{entry.name}"}],
        "bindings": {"mqtt": {"qos": entry.qos, "retain": entry.retain, "bindingVersion": "0.2.0"}},
    }
    if entry.answered_by:
        verb = next(one.verb for one in CONTRACT if one.name == entry.answered_by)
        operation["reply"] = {"channel": {"$ref": f"#/channels/{verb}"}}
    return operation


def _message(entry: Entry) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{entry.name}"}
    message: dict[str, Any] = {
        "name": entry.name,
        "summary": (type(entry.example).__doc__ or "").partition("\n")[0],
        "contentType": "application/json",
        "x-expires": entry.expires,
        "x-maximum-bytes": messages.MAX_MESSAGE_BYTES,
    }
    if entry.payload_type:
        message |= {
            "payload": {"$ref": "#/components/schemas/Envelope"},
            "x-payload-type": entry.payload_type,
            "x-signed-payload": schema,
            "x-signed-example": msgspec.to_builtins(entry.example),
        }
    else:
        message |= {"payload": schema, "examples": [{"payload": msgspec.to_builtins(entry.example)}]}
    return message


def _told(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema, with what each property means and `x-unit` where its name says one; its text is on one line."""
    made = dict(schema)
    if "description" in made:
        made["description"] = " ".join(str(made["description"]).split())
    if "properties" in made:
        made["properties"] = {field: _property(name, field, of) for field, of in made["properties"].items()}
    return made


def _property(of: str, field: str, schema: dict[str, Any]) -> dict[str, Any]:
    """One property; a reference is wrapped, since nothing beside one counts."""
    made: dict[str, Any] = {"allOf": [schema]} if "$ref" in schema else dict(schema)
    made["description"] = meaning(of, field)
    unit = next((unit for suffix, unit in UNITS.items() if f"_{field}".endswith(suffix)), None)
    return made if unit is None else {**made, "x-unit": unit}


def _camel(name: str) -> str:
    return name[0].lower() + name[1:]


def text() -> bytes:
    """The document as it is in the file."""
    return msgspec.json.format(msgspec.json.encode(document()), indent=1) + b"\n"


if __name__ == "__main__":
    FILE.write_bytes(text())
