"""The unit's key in a TPM, against swtpm: made once and kept, used by others' eyes, and honest when the TPM is not."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import TrustError
from agent.ports import Signer
from agent.trust import dsse
from agent.trust.keys import KeyAbsentError, KeySlowError, load_public_key
from agent.trust.tpm import DEFAULT_HANDLE, TpmPlace, TpmSigner, read_facts
from agent.trust.tpm_commands import OWNER, Tpm
from agent.trust.tpm_structures import attestation_template, storage_template
from agent.trust.tpm_transport import Deadline, DescriptorTransport, opener
from agent.trust.tpm_wire import TpmError
from hil.emulated_keys import EmulatedTpm
from tests.trust.hardware_keys import ScriptedTransport, needs_swtpm, needs_tpm2_tools, reply

pytestmark = needs_swtpm


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedTpm]:
    with EmulatedTpm(tmp_path_factory.mktemp("tpm")) as tpm:
        yield tpm


@pytest.fixture
def place(emulated: EmulatedTpm) -> TpmPlace:
    return TpmPlace(device=emulated.address)


# --- the key ----------------------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_is_the_same_afterwards(place: TpmPlace) -> None:
    first: Signer = TpmSigner.open_or_create(place)
    again, opened = TpmSigner.open_or_create(place), TpmSigner.open(place)
    assert first.keyid == again.keyid == opened.keyid
    assert dsse.signature_holds(load_public_key(first.public_key_pem()), opened.sign(b"x" * 3000), b"x" * 3000)
    assert not dsse.signature_holds(opened.public_key(), opened.sign(b"x"), b"y")


def test_it_signs_envelopes_that_openssl_verifies(place: TpmPlace, tmp_path: Path) -> None:
    signer = TpmSigner.open_or_create(place)
    (tmp_path / "key.pem").write_text(signer.public_key_pem())
    (tmp_path / "sig").write_bytes(signer.sign(b"a message"))
    (tmp_path / "message").write_bytes(b"a message")
    verify: list[str | Path] = ["openssl", "dgst", "-sha256", "-verify", tmp_path / "key.pem"]
    verify += ["-signature", tmp_path / "sig"]
    said = subprocess.run([*verify, tmp_path / "message"], capture_output=True, check=True, text=True)
    assert said.stdout == "Verified OK\n"


def test_it_survives_a_power_cut_and_the_reset_is_counted(tmp_path: Path) -> None:
    with EmulatedTpm(tmp_path) as emulated:
        place = TpmPlace(device=emulated.address)
        signer = TpmSigner.open_or_create(place)
        before = signer.facts().clock
        emulated.stop()
        with pytest.raises(KeyAbsentError, match="no TPM answers"):
            signer.sign(b"x")
        emulated.start()
        assert dsse.signature_holds(signer.public_key(), signer.sign(b"x"), b"x")
        after = TpmSigner.open(place).facts().clock
        assert after.reset_count == before.reset_count + 1


def test_nothing_is_left_in_the_tpm_but_the_key(place: TpmPlace) -> None:
    """Three objects fill a chip: a fourth key made in a row would fail, were one left each time."""
    for number in range(1, 5):
        signer = TpmSigner.open_or_create(TpmPlace(device=place.device, handle=DEFAULT_HANDLE + number))
        assert dsse.signature_holds(signer.public_key(), signer.sign(b"x"), b"x")


def test_without_leave_to_make_one_a_missing_key_is_said(place: TpmPlace) -> None:
    with pytest.raises(KeyAbsentError, match=r"has no key at 0x81000177; was it cleared\? enrol again"):
        TpmSigner.open(TpmPlace(device=place.device, handle=0x81000177))
    with pytest.raises(TrustError, match="no persistent handle"):
        TpmSigner.open_or_create(TpmPlace(device=place.device, handle=0x80000000))


@pytest.mark.parametrize("template", [storage_template(), attestation_template()])
def test_a_key_of_another_kind_is_refused_and_kept(place: TpmPlace, template: bytes) -> None:
    handle = 0x81000150 + template.count(b"\x00")
    with place.opened(20) as tpm, tpm.primary(OWNER, template) as (transient, public):
        tpm.persist(transient, handle)
    with pytest.raises(TrustError, match="of another kind"):
        TpmSigner.open_or_create(TpmPlace(device=place.device, handle=handle))
    with place.opened() as tpm:
        kept = tpm.read_public(handle)
    assert kept is not None
    assert kept.area == public.area


def test_an_emulator_never_passes_for_a_chip(place: TpmPlace) -> None:
    facts = TpmSigner.open_or_create(place).facts()
    assert (facts.manufacturer, facts.kind) == ("IBM", "ftpm")
    assert facts.revision.startswith("1.")
    assert TpmSigner.open(TpmPlace(device=place.device, kind="tpm")).protection == "tpm"  # somebody knows better


@pytest.mark.parametrize(
    ("maker", "kind"), [(b"IFX\0", "tpm"), (b"STM ", "tpm"), (b"MSFT", "ftpm"), (b"\x01\xff..", "ftpm")]
)
def test_who_made_it_says_what_it_is(maker: bytes, kind: str) -> None:
    properties = b"\0" + bytes.fromhex("000000060000000100000105") + maker
    clock = bytes(8) + bytes(16) + b"\1"
    transport = ScriptedTransport(reply(properties), reply(clock))
    with Tpm(lambda _deadline: transport, 1.0) as tpm:
        assert read_facts(tpm, TpmPlace()).kind == kind
    assert transport.closed


@needs_tpm2_tools
def test_it_is_the_key_that_other_tools_see(tmp_path: Path) -> None:
    with EmulatedTpm(tmp_path, for_tools=True) as emulated:
        signer = TpmSigner.open_or_create(TpmPlace(device=emulated.address))
        out = str(tmp_path / "key.pem")
        command = ["tpm2_readpublic", "-c", hex(DEFAULT_HANDLE), "-f", "pem", "-o", out]
        said = subprocess.run(
            command, env={**os.environ, "TPM2TOOLS_TCTI": emulated.tcti}, capture_output=True, check=True, text=True
        )
        assert "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign" in said.stdout
        assert load_public_key((tmp_path / "key.pem").read_text()) == signer.public_key()


# --- when it is slow, away or says no ---------------------------------------------------------------------------


def test_a_tpm_that_hangs_fails_within_its_limit_and_is_used_again_when_it_comes_back(tmp_path: Path) -> None:
    with EmulatedTpm(tmp_path) as emulated:
        place = TpmPlace(device=emulated.address, limit_s=0.3)
        signer = TpmSigner.open_or_create(place)
        emulated.hang()
        with pytest.raises(KeySlowError, match=r"within 0\.3 s"):
            signer.sign(b"x")
        emulated.hang(hanging=False)
        patient = TpmSigner.open(TpmPlace(device=emulated.address))
        assert dsse.signature_holds(signer.public_key(), patient.sign(b"x"), b"x")


@pytest.mark.parametrize("code", [0x908, 0x90A, 0x920, 0x922])
def test_a_busy_tpm_is_asked_again_and_not_for_ever(code: int) -> None:
    clock = bytes(8) + (4711).to_bytes(8, "big") + bytes(8) + b"\1"
    transport = ScriptedTransport(reply(b"", code=code), reply(b"", code=code), reply(clock))
    with Tpm(lambda _deadline: transport, 5.0) as tpm:
        assert tpm.read_clock().clock_ms == 4711
    assert len(set(transport.sent)) == 1
    with (
        Tpm(lambda _deadline: ScriptedTransport(reply(b"", code=code)), 0.1) as tpm,
        pytest.raises(KeySlowError, match="was not done within"),
    ):
        tpm.read_clock()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0x902, "no memory for another object (code 0x902); use /dev/tpmrm0"),
        (0x921, "it is locked after wrong passwords (code 0x921); wait, or tpm2_dictionarylockout"),
        (0x98E, "the password is wrong, and was counted (session 1) (code 0x98e); give the right"),
        (0x9A2, "the password is wrong (session 1)"),
        (0x18B, "there is no such handle (handle 1)"),
        (0x2E6, "it does not have the curve (parameter 2)"),
        (0x101, "it is in failure mode (code 0x101); restart the computer"),
        (0x14B, "no room in its NV memory"),
        (0xFFF, "it gave no known reason"),
    ],
)
def test_what_a_tpm_says_no_with_is_explained(code: int, said: str) -> None:
    with (
        Tpm(lambda _deadline: ScriptedTransport(reply(b"", code=code)), 1.0) as tpm,
        pytest.raises(TpmError) as error,
    ):
        tpm.sign(DEFAULT_HANDLE, bytes(32))
    assert said in str(error.value)
    assert error.value.code == code


@needs_tpm2_tools
def test_the_owners_password_is_read_from_its_file_and_a_wrong_one_explained(tmp_path: Path) -> None:
    with EmulatedTpm(tmp_path, for_tools=True) as emulated:
        env = {**os.environ, "TPM2TOOLS_TCTI": emulated.tcti}
        subprocess.run(["tpm2_changeauth", "-c", "owner", "secret"], env=env, check=True, capture_output=True)
        with pytest.raises(TpmError, match=r"the password is wrong.*owner_auth_file"):
            TpmSigner.open_or_create(TpmPlace(device=emulated.address))
        auth = tmp_path / "auth"
        auth.touch(mode=0o600)
        auth.write_text("secret\n")
        signer = TpmSigner.open_or_create(TpmPlace(device=emulated.address, owner_auth_file=auth))
        auth.unlink()  # only to make the key
        unlocked = TpmSigner.open(TpmPlace(device=emulated.address))
        assert dsse.signature_holds(signer.public_key(), unlocked.sign(b"x"), b"x")


# --- how it is reached ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def character_device(emulated: EmulatedTpm) -> Iterator[str]:
    """A character device that passes each write to the emulator and its reply back, as /dev/tpmrm0 does."""
    master, slave = os.openpty()
    tty.setraw(slave)
    path = emulated.address.removeprefix("unix:")
    over, tell = os.pipe()

    def relay() -> None:
        with socket.socket(socket.AF_UNIX) as to_tpm:
            to_tpm.connect(path)
            while True:
                ready, _, _ = select.select([master, to_tpm.fileno(), over], [], [])
                if over in ready:
                    return
                if master in ready:
                    to_tpm.sendall(os.read(master, 4096))
                if to_tpm.fileno() in ready:
                    os.write(master, to_tpm.recv(4096))

    thread = threading.Thread(target=relay)
    thread.start()
    try:
        yield os.ttyname(slave)
    finally:
        os.close(tell)
        thread.join()
        for descriptor in (master, slave, over):
            os.close(descriptor)


def test_a_character_device_is_used_like_the_kernels(emulated: EmulatedTpm) -> None:
    key = TpmSigner.open_or_create(TpmPlace(device=emulated.address)).public_key()
    with character_device(emulated) as path:
        signer = TpmSigner.open(TpmPlace(device=path))
        assert dsse.signature_holds(key, signer.sign(b"x"), b"x")
        assert signer.public_key() == key


def test_a_device_that_is_not_there_or_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(KeyAbsentError, match="is its driver loaded"):
        TpmSigner.open(TpmPlace(device=str(tmp_path / "tpmrm0")))
    (tmp_path / "file").touch()
    with pytest.raises(KeyAbsentError, match="is no character device"):
        TpmSigner.open(TpmPlace(device=str(tmp_path / "file")))


@pytest.mark.parametrize(
    "address", ["", "tpm0", "unix:", "tcp:host", "tcp:host:0x1", "tcp::1", "tcp:h:70000", "http:x:1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(TrustError, match="is no TPM's address"):
        opener(address)


@pytest.mark.parametrize(
    "answer", [b"", b"\x80\x01\0\0", b"\x80\x01\xff\xff\xff\xff\0\0\0\0", b"\x80\x01\0\0\0\x02\0\0\0\0"]
)
def test_a_reply_that_breaks_off_or_announces_nonsense_ends_the_exchange(tmp_path: Path, answer: bytes) -> None:
    path = str(tmp_path / "tpm.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(TrustError), Tpm(opener(f"unix:{path}"), 5.0) as tpm:
            tpm.read_clock()
        thread.join()


def test_a_reply_that_comes_byte_by_byte_is_whole_and_one_that_stops_is_late() -> None:
    clock = reply(bytes(8) + (7).to_bytes(8, "big") + bytes(8) + b"\1")
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transport = DescriptorTransport(ours.detach(), "a pair")
    with theirs:
        for number in range(len(clock)):
            theirs.send(clock[number : number + 1])
        assert transport.exchange(b"command", Deadline(5.0)) == clock
        assert theirs.recv(100) == b"command"
        theirs.send(clock[:-1])
        with pytest.raises(KeySlowError):
            transport.exchange(b"command", Deadline(0.05))
        transport.close()
        transport.close()  # twice does no harm
