"""What is fuzzed: every reader and verifier of bytes from strangers, with honest bytes to start from.

A reader may refuse with TrustError (of a message: MessageError) and with nothing else. What a verifier of signed things
accepts has to be one of the honest ones: the fuzzer has no key, so anything else is a forgery, and raises `Forged`.
The catalogue's are in `tests.fuzz.catalogue_target`, those that want an emulated TPM in `tests.fuzz.tpm_targets`.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x448, x25519
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.errors import TrustError
from agent.fleet import messages
from agent.trust import bundle, catalogue, checkpoint, dsse, grant, keys, sealing_key, session, statement, succession
from agent.trust.dsse import VerifyingKey
from agent.trust.records import read, spell
from hil.dispatcher.endorsement import check_endorsement
from tests.hil import test_dispatcher_endorsement as chips
from tests.trust import test_grant as grants
from tests.trust.conftest import sample_statement
from tests.trust.evidence_world import World, new_key, payload_of

UNIT = "car-1"


class Forged(AssertionError):  # noqa: N818 - what libFuzzer shows of it says more than an Error at its end
    """Something was accepted that nobody signed."""


@dataclass(frozen=True)
class Target:
    """One reader. `honest`: all that it may answer; None where it only reads. It takes the first seed."""

    read: Callable[[bytes], object]
    seeds: list[bytes]
    honest: tuple[object, ...] | None = None

    def try_once(self, body: bytes) -> bool:
        """Whether it was accepted; raises what no reader may raise, and Forged."""
        try:
            said = self.read(body)
        except (TrustError, messages.MessageError):
            return False
        if self.honest is not None and said not in self.honest:
            raise Forged(repr(said)[:2000])
        return True


def targets() -> dict[str, Callable[[], Target]]:
    """How each is made, by its name."""
    return {
        **{name: functools.partial(one_of, of_the_ledger, name) for name in LEDGER},
        **{name: functools.partial(one_of, of_a_unit, name) for name in UNITS},
        "grant": signed_grant,
        "ticket": ticket,
        "deny_list": deny_list,
        "dispatchers": dispatchers,
        "public_key": public_key,
        "endorsement": endorsement,
    }


def one_of(made: Callable[[], dict[str, Target]], name: str) -> Target:
    return made()[name]


LEDGER = ("dsse", "statement", "session", "checkpoint", "result", "proof", "certified", "witnessed")
UNITS = ("succession", "succession_record", "sealing_key", "sealing_key_record")


def of_the_ledger() -> dict[str, Target]:
    """Statements, session certificates and checkpoints: read (the first four), and verified down to the unit's key."""
    world = World(sample_statement(), leases=1)
    leaves = tuple(payload_of(leaf) for _, leaf in world.leaves)
    signed = (payload_of(world.session.certificate), payload_of(world.checkpoint()))
    return {
        "dsse": Target(dsse.parse, [world.leaves[1][1], world.checkpoint()]),
        "statement": Target(statement.parse_statement, [leaves[1]]),
        "session": Target(session.parse_certificate, [signed[0]]),
        "checkpoint": Target(checkpoint.parse_checkpoint, [signed[1]]),
        "result": Target(
            lambda body: bundle.verify_result(body, world.units), [world.result()], tuple(world.statements)
        ),
        "proof": Target(
            lambda body: bundle.verify_proof(body, world.units, world.witnesses).payload,
            [world.proof(index) for index in range(3)],
            leaves,
        ),
        "certified": Target(
            lambda body: session.verify_session(body, world.units).certificate,
            [world.session.certificate],
            (session.parse_certificate(signed[0]),),
        ),
        "witnessed": Target(
            lambda body: checkpoint.verify_countersigned(body, world.units, world.witnesses),
            [world.checkpoint()],
            (checkpoint.parse_checkpoint(signed[1]),),
        ),
    }


def of_a_unit() -> dict[str, Target]:
    """A unit's next key, and the key to which inputs are sealed."""
    old, new = new_key(), new_key()
    envelope = succession.succeed(old, new, unit=UNIT, epoch=2, overlap_s=86_400, reason="rotation")
    succeeded = succession.parse_succession(payload_of(envelope))
    mine = sealing_key.SealingKey(7, x25519.X25519PrivateKey.generate())
    record = mine.record(UNIT)
    told = dsse.sign(sealing_key.SEALING_KEY_TYPE, record, old)
    trusted = {old.keyid: old.public_key()}
    return {
        "succession": Target(
            lambda body: succession.verify_succession(body, old.public_key(), unit=UNIT, epoch=1),
            [envelope],
            (succession.Succeeded(succeeded, new.public_key()),),
        ),
        "succession_record": Target(succession.parse_succession, [payload_of(envelope)]),
        "sealing_key": Target(
            lambda body: sealing_key.verify_sealing_key(body, UNIT, trusted),
            [told],
            ((read(sealing_key.SealingKeyRecord, record, "sealing key"), mine.public),),
        ),
        "sealing_key_record": Target(lambda body: read(sealing_key.SealingKeyRecord, body, "sealing key"), [record]),
    }


def grant_payload() -> bytes:
    """What a dispatcher signs."""
    job = messages.JobGrant(
        job="job1",
        epoch=3,
        nonce="0" * 32,
        customer="acme",
        package=messages.PackageRef(name=grants.CLAIMS.package, sha256=grants.OCR),
        input=messages.ObjectRef(url="http://127.0.0.1/x", sha256="b" * 64, bytes=10),
        items=12,
        slice_items=4,
        slices=(0, 1, 2),
        ttl_s=600,
        price_micro_per_item=25,
        currency="USD",
    )
    return messages.encode(messages.GrantMessage(rid="r", unit=UNIT, job=job))


def signed_grant() -> Target:
    """A grant's envelope, as the gatekeeper verifies it: by a delegated key, or by that and another's."""
    payload, standing = grant_payload(), grants.standing()
    one = dsse.sign(messages.GRANT_TYPE, payload, grants.KEY)
    seeds = [one, dsse.add_signature(dsse.sign(messages.GRANT_TYPE, payload, grants.OLD_KEY), grants.KEY)]
    return Target(lambda body: grant.verify_order(body, messages.GRANT_TYPE, standing), seeds, (payload,))


def ticket() -> Target:
    """A grant's content, behind the signature: read as the desk reads it, and judged by the catalogue.

    Here the dispatcher is the stranger, who has a key that counts: what is taken names a package that is listed, this
    unit, and a lease of a day at most.
    """
    standing = grants.standing()

    def take(body: bytes) -> object:
        message = messages.decode(body, messages.GrantMessage)
        if message.job is None:
            return True
        job = message.job
        package = job.package
        claims = grant.GrantClaims(message.unit, job.nonce, package.name, package.sha256, job.ttl_s, job.renew_s)
        grant.check_grant(claims, unit=UNIT, standing=standing)
        return (job.package.name, job.package.sha256, message.unit) == ("ocr", grants.OCR, UNIT) and job.ttl_s <= 86_400

    return Target(take, [grant_payload()], (True,))


def deny_list() -> Target:
    """The content of deny.json, behind its signature: what it denies can be asked for."""
    denied = catalogue.Denied("ab" * 32, "why"), catalogue.Denied("1.4"), catalogue.Denied("1.4.0-rc.1")

    def take(body: bytes) -> object:
        found = catalogue.read_deny_list(body)
        whole = dataclasses.replace(grants.CATALOGUE, denied=found)
        return all(whole.denies_agent(one.what) is not None for one in found.agents)

    said = catalogue.DenyList(3, agents=denied[1:], packages=denied[:1], dispatchers=denied[:1])
    return Target(take, [spell(said)], (True,))


def dispatchers() -> Target:
    """The content of dispatchers.json, behind its signature: every key in it is one that can verify."""

    def take(body: bytes) -> object:
        return usable(key for _, key in catalogue.dispatcher_keys(catalogue.read_dispatchers(body)).values())

    said = catalogue.Dispatchers(2, (grants.dispatcher(grants.KEY, 2), grants.dispatcher(grants.OLD_KEY, 1)))
    return Target(take, [spell(said)], (True,))


def usable(found: Iterable[VerifyingKey]) -> bool:
    """Whether every key is of a kind that verifies here, and refuses a signature that is none, without a murmur."""
    return all(
        keys.load_verifying_key(pem(one)) == one and not dsse.signature_holds(one, bytes(64), b"message")
        for one in found
    )


def pem(key: VerifyingKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def public_key() -> Target:
    """A public key in DER, read in each of three ways: of P-256, and of curves and kinds that are not taken."""

    def take(body: bytes) -> object:
        text = base64.b64encode(body).decode("ascii")
        armoured = f"-----BEGIN PUBLIC KEY-----\n{base64.encodebytes(body).decode('ascii')}-----END PUBLIC KEY-----\n"
        in_pem = [or_none(one, armoured) for one in (keys.load_public_key, keys.load_verifying_key)]
        found = [key for key in (or_none(keys.load_der_public_key, text), *in_pem) if key is not None]
        return usable(found) and len(set(map(keys.keyid, found))) <= 1

    made: list[PublicKeyTypes] = [
        ec.generate_private_key(curve()).public_key() for curve in (ec.SECP256R1, ec.SECP384R1, ec.SECP256K1)
    ]
    made += [ed25519.Ed25519PrivateKey.generate().public_key(), x25519.X25519PrivateKey.generate().public_key()]
    made += [x448.X448PrivateKey.generate().public_key(), rsa.generate_private_key(65537, 2048).public_key()]
    seeds = [one.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for one in made]
    unknown = seeds[0].replace(P_256, P_256[:-1] + b"\x7f")
    return Target(take, [*seeds, unknown, EXPLICIT], (True,))


P_256 = bytes.fromhex("2a8648ce3d030107")
"""The curve's object identifier; another last byte is a curve that nobody knows."""
EXPLICIT = base64.b64decode(
    "MIIBSzCCAQMGByqGSM49AgEwgfcCAQEwLAYHKoZIzj0BAQIhAP////8AAAABAAAAAAAAAAAAAAAA////////////////MFsEIP//"
    "//8AAAABAAAAAAAAAAAAAAAA///////////////8BCBaxjXYqjqT57PrvVV2mIa8ZR0GsMxTsPY7zjw+J9JgSwMVAMSdNgiG5wST"
    "amZ44ROdJreBn36QBEEEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBo"
    "N79R9QIhAP////8AAAAA//////////+85vqtpxeehPO5ysL8YyVRAgEBA0IABBnQJAKzP0dWHqeF1wKqEs2BTsiC3k4wmbavHlro"
    "b0N0A6m2MEpZqBbX9r6S5We5ffU16tU0CyELtnTgGidzqFg="
)
"""A P-256 key whose curve is spelled out instead of named, as OpenSSL writes it with `-param_enc explicit`."""


def or_none(read_key: Callable[[str], VerifyingKey], said: str) -> VerifyingKey | None:
    """The key, None where it is refused."""
    try:
        return read_key(said)
    except TrustError:
        return None


def endorsement() -> Target:
    """Certificates one behind another in DER: the chip's first, then those that are to lead to the maker."""
    honest = [chips.evidence(chips.ROOT), chips.evidence(chips.BETWEEN, chips.BETWEEN.der)]

    def take(body: bytes) -> object:
        first, *chain = split(body)
        shown = dataclasses.replace(honest[0], ek_certificate=first, ek_chain=tuple(chain))
        return check_endorsement(shown, [chips.ROOT.certificate], chips.NOW).tbs_certificate_bytes

    signed = tuple(check_endorsement(one, [chips.ROOT.certificate], chips.NOW).tbs_certificate_bytes for one in honest)
    return Target(take, [one.ek_certificate + b"".join(one.ek_chain) for one in honest], signed)


def split(body: bytes) -> list[bytes]:
    """Up to six pieces, each as long as its DER says: also the ones that are no certificates."""
    found: list[bytes] = []
    while len(found) < 6 and (len(body) > 4 or not found):
        end = 4 + int.from_bytes(body[2:4], "big")
        found.append(body[:end])
        body = body[end:]
    return found
