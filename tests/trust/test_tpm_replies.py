"""What a TPM answers is a stranger's word: whatever the bytes, a method gives a whole value or raises TrustError."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import TrustError
from agent.trust.tpm import TpmPlace, TpmSigner, read_facts
from agent.trust.tpm_commands import ENDORSEMENT, Tpm
from agent.trust.tpm_structures import (
    attestation_template,
    endorsement_template,
    parse_attestation,
    parse_public,
    parse_signature,
)
from agent.trust.tpm_transport import Deadline, opener
from agent.trust.tpm_wire import Reader, block
from hil.emulated_keys import EmulatedTpm
from tests.trust.hardware_keys import ScriptedTransport, needs_swtpm, reply, scripted

FUZZ = settings(max_examples=300, derandomize=True, deadline=None)
HANDLE = 0x81000100
USES: dict[str, Callable[[Tpm], Any]] = {
    "read_public": lambda tpm: tpm.read_public(HANDLE),
    "sign": lambda tpm: tpm.sign(HANDLE, bytes(32)),
    "create": lambda tpm: tpm.create(HANDLE, b"template"),
    "certify": lambda tpm: tpm.certify(HANDLE, 1, b"q"),
    "quote": lambda tpm: tpm.quote(1, [0], b"q"),
    "activate": lambda tpm: tpm.activate_credential(1, 2, b"b", b"s"),
    "facts": lambda tpm: read_facts(tpm, TpmPlace()),
    "read_nv": lambda tpm: tpm.read_nv(0x01C00002),
    "primary": lambda tpm: tpm.primary(ENDORSEMENT, b"template").__enter__(),
}


def survives(use: Callable[[Tpm], Any], *replies: bytes) -> None:
    """Nothing but TrustError comes out of it."""
    with scripted(*replies, limit_s=0.02) as tpm, contextlib.suppress(TrustError):
        use(tpm)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@FUZZ
@given(bodies=st.lists(st.binary(max_size=200), min_size=1, max_size=4), tag=st.sampled_from((0x8001, 0x8002)))
def test_replies_with_a_right_header_and_any_body(use: Callable[[Tpm], Any], bodies: list[bytes], tag: int) -> None:
    survives(use, *(reply(body, tag=tag) for body in bodies))


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@settings(FUZZ, max_examples=60)
@given(replies=st.lists(st.binary(max_size=60), min_size=1, max_size=3))
def test_replies_of_any_bytes(use: Callable[[Tpm], Any], replies: list[bytes]) -> None:
    survives(use, *replies)


class Recording:
    """A transport that keeps the replies of a real one."""

    def __init__(self, address: str, replies: list[bytes]) -> None:
        self._inner, self._replies = opener(address)(Deadline(20)), replies

    def exchange(self, command: bytes, deadline: Deadline) -> bytes:
        self._replies.append(self._inner.exchange(command, deadline))
        return self._replies[-1]

    def close(self) -> None:
        self._inner.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[bytes]]]:
    """The true replies of each use."""
    found: dict[str, list[bytes]] = {}
    with EmulatedTpm(tmp_path_factory.mktemp("tpm")) as emulated:
        place = TpmPlace(device=emulated.address)
        TpmSigner.open_or_create(place)

        def record(name: str, use: Callable[[Tpm], Any]) -> None:
            replies = found.setdefault(name, [])
            with Tpm(lambda _deadline: Recording(emulated.address, replies), 20) as tpm:
                use(tpm)

        def certify(tpm: Tpm) -> None:
            with tpm.primary(ENDORSEMENT, attestation_template()) as (handle, _):
                tpm.certify(HANDLE, handle, b"q")

        def quote(tpm: Tpm) -> None:
            with tpm.primary(ENDORSEMENT, attestation_template()) as (handle, _):
                tpm.quote(handle, [0, 7], b"q")

        def primary(tpm: Tpm) -> None:
            with tpm.primary(ENDORSEMENT, endorsement_template(rsa=True)):
                pass

        for name, use in {"certify": certify, "quote": quote, "primary": primary}.items():
            record(name, use)
        for name in ("read_public", "sign", "facts"):
            record(name, USES[name])
        yield found


@needs_swtpm
@pytest.mark.parametrize("name", ["certify", "quote", "primary", "read_public", "sign", "facts"])
@settings(FUZZ, max_examples=200)
@given(data=st.data())
def test_true_replies_with_bytes_changed_cut_or_added(
    recorded: dict[str, list[bytes]], name: str, data: st.DataObject
) -> None:
    replies = list(recorded[name])
    number = data.draw(st.integers(0, len(replies) - 1))
    spoilt = bytearray(replies[number])
    match data.draw(st.sampled_from(("change", "cut", "add"))):
        case "change":
            for _ in range(data.draw(st.integers(1, 3))):
                spoilt[data.draw(st.integers(min(10, len(spoilt) - 1), len(spoilt) - 1))] = data.draw(
                    st.integers(0, 255)
                )
        case "cut":
            del spoilt[data.draw(st.integers(0, len(spoilt) - 1)) :]
        case _:
            spoilt += data.draw(st.binary(min_size=1, max_size=8))
    if len(spoilt) >= 6:
        spoilt[2:6] = len(spoilt).to_bytes(4, "big")  # a header that fits, so that what is inside is looked at
    replies[number] = bytes(spoilt)
    replay(name, replies)


def replay(name: str, replies: list[bytes]) -> None:
    """The use again, with these replies: they come in the order in which they were recorded."""

    def use(tpm: Tpm) -> None:
        if name in {"certify", "quote"}:
            with tpm.primary(ENDORSEMENT, attestation_template()) as (handle, _):
                found = tpm.certify(HANDLE, handle, b"q") if name == "certify" else tpm.quote(handle, [0, 7], b"q")
                parse_attestation(found[0])
        elif name == "primary":
            with tpm.primary(ENDORSEMENT, endorsement_template(rsa=True)):
                pass
        else:
            USES[name](tpm)

    survives(use, *replies)


@needs_swtpm
def test_the_replay_is_of_the_true_replies(recorded: dict[str, list[bytes]]) -> None:
    """Unspoilt they are taken, so that the fuzzing above begins from what works."""
    for name in ("read_public", "sign", "facts"):
        with scripted(*recorded[name]) as tpm:
            assert USES[name](tpm)


# --- the parsers alone ------------------------------------------------------------------------------------------


def taken(parser: Callable[[bytes], Any], body: bytes) -> None:
    """Nothing but TrustError comes out of it."""
    with contextlib.suppress(TrustError):
        parser(body)


POINT = generate_private_key(SECP256R1()).public_key().public_numbers()
ECC = attestation_template()[:-4] + block(POINT.x.to_bytes(32, "big")) + block(POINT.y.to_bytes(32, "big"))
RSA = endorsement_template(rsa=True)[:-256] + b"\xc1" + bytes(254) + b"\x01"
AREAS = (ECC, RSA)


@FUZZ
@given(st.binary(max_size=300))
def test_public_areas_attestations_and_signatures_of_any_bytes(body: bytes) -> None:
    taken(parse_public, body)
    taken(parse_attestation, body)
    taken(lambda data: parse_signature(Reader(data, "x")), body)


@FUZZ
@given(st.integers(0, 1000), st.integers(0, 255), st.sampled_from(AREAS))
def test_public_areas_with_a_byte_changed(place: int, value: int, area: bytes) -> None:
    assert parse_public(area).area == area
    spoilt = bytearray(area)
    spoilt[place % len(area)] = value
    taken(parse_public, bytes(spoilt))


def test_what_is_no_key_is_named() -> None:
    point = block((5).to_bytes(32, "big")) * 2
    for area, said in (
        (attestation_template()[:-4] + point, "not on P-256"),
        (b"\0\x08" + ECC[2:], "neither ECC nor RSA"),
        (ECC[:2] + b"\0\x04" + ECC[4:], "name algorithm is 0x4"),
        (ECC + b"\0", "too many"),
        (ECC[:-1], "in the middle of a field"),
        (endorsement_template(rsa=True), "not an RSA key"),
    ):
        with pytest.raises(TrustError, match=said):
            parse_public(area)


def test_what_is_no_attestation_is_named() -> None:
    clock = bytes(16) + b"\1" + bytes(8)
    for body, said in (
        (b"\0\0\0\0", "first word is 0x0"),
        (bytes.fromhex("ff5443478014") + bytes(4) + clock, "neither a certification nor a quote"),
        (bytes.fromhex("ff5443478017") + bytes(4) + bytes(16) + b"\2" + bytes(8), "neither yes nor no"),
        (bytes.fromhex("ff5443478018") + bytes(4) + clock + b"\0\0\0\x20", "32 banks"),
        (bytes.fromhex("ff5443478017") + bytes(4) + clock + b"\x10\0", "a field of 4096 bytes"),
    ):
        with pytest.raises(TrustError, match=said):
            parse_attestation(body)


def test_a_tpm_that_fails_is_closed_and_its_objects_flushed() -> None:
    """A key was loaded, and using it fails: it is flushed, whatever the TPM says to that."""
    public = block(bytes.fromhex("0023"))
    transport = ScriptedTransport(
        reply(b"\x80\0\0\1" + (4).to_bytes(4, "big") + public, tag=0x8002), reply(b"", code=0x101)
    )
    with pytest.raises(TrustError), Tpm(lambda _deadline: transport, 1.0) as tpm, tpm.primary(ENDORSEMENT, b"template"):
        pass
    assert transport.closed
    assert transport.sent[-1] == bytes.fromhex("80010000000e0000016580000001")
