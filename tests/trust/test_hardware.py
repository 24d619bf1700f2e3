"""The unit's key on its thread: late, absent or wrong hardware costs its caller a sentence, and nobody else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from agent.errors import TrustError
from agent.ports import Signer
from agent.trust import dsse
from agent.trust.hardware import BACKOFF_S, BlockingSigner, HardwareSigner, KeyState
from agent.trust.keyring import described
from agent.trust.keys import FileSigner, KeyAbsentError, KeyRefusedError, KeySlowError, load_public_key

LIMIT_S = 5.0


class Hardware(FileSigner):
    """A key whose hardware does what a test wants of it."""

    def __init__(self) -> None:
        super().__init__(generate_private_key(SECP256R1()))
        self.failure: Exception | None = None
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.opened = self.closed = self.signed = 0
        self.threads: set[str] = set()

    def open(self) -> Hardware:  # type: ignore[override]  # a key like any other, opened by itself
        self.opened += 1
        if self.failure is not None:
            raise self.failure
        return self

    def sign(self, message: bytes) -> bytes:
        self.threads.add(threading.current_thread().name)
        assert self.goes_on.wait(30)
        if self.failure is not None:
            raise self.failure
        self.signed += 1
        return super().sign(message)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def hardware() -> Hardware:
    return Hardware()


class Hands:
    """The signer with a clock that the test moves."""

    def __init__(self, hardware: Hardware, limit_s: float = LIMIT_S) -> None:
        self.now_s = 100.0
        known = described(hardware, "tpm", 1)
        self.signer = HardwareSigner(hardware.open, known, limit_s=limit_s, clock_s=lambda: self.now_s)

    def sign(self) -> bytes:
        return asyncio.run(self.signer.sign(b"x"))


@pytest.fixture
def hands(hardware: Hardware) -> Iterator[Hands]:
    made = Hands(hardware)
    yield made
    made.signer.close()


def test_it_is_opened_when_it_is_first_asked_and_stays_open(hands: Hands, hardware: Hardware) -> None:
    assert hands.signer.health.state is KeyState.UNTRIED
    assert (hardware.opened, hands.signer.keyid) == (0, hardware.keyid)
    for _ in range(3):
        assert dsse.signature_holds(load_public_key(hands.signer.public_key_pem()), hands.sign(), b"x")
    assert (hardware.opened, hands.signer.health.state) == (1, KeyState.READY)
    assert hardware.threads == {"unit-key"}


@pytest.mark.parametrize(
    ("failure", "state"),
    [
        (KeyAbsentError("no TPM"), KeyState.ABSENT),
        (KeySlowError("it sleeps"), KeyState.SLOW),
        (TrustError("another kind"), KeyState.FAILED),
        (ValueError("a bug"), KeyState.FAILED),
    ],
)
def test_a_failure_is_told_at_once_until_it_is_time_to_try_again(
    hands: Hands, hardware: Hardware, failure: Exception, state: KeyState
) -> None:
    hardware.failure = failure
    with pytest.raises(TrustError):
        hands.sign()
    assert (hands.signer.health.state, hands.signer.health.retry_in_s) == (state, BACKOFF_S[0])
    with pytest.raises(KeyAbsentError, match=r"tried again in 1 s"):
        hands.sign()
    assert hardware.opened == 1
    hands.now_s += BACKOFF_S[0]
    hardware.failure = None
    assert hands.sign()
    assert (hands.signer.health.state, hands.signer.health.reason) == (KeyState.READY, "")


def test_the_waits_double_up_to_a_minute_and_begin_anew_after_a_success(hands: Hands, hardware: Hardware) -> None:
    hardware.failure = KeyAbsentError("no TPM")
    waits = []
    for _ in range(8):
        with pytest.raises(TrustError):
            hands.sign()
        retry_in_s = hands.signer.health.retry_in_s
        assert retry_in_s is not None
        waits.append(retry_in_s)
        hands.now_s += retry_in_s
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    hardware.failure = None
    hands.sign()
    hardware.failure = KeyAbsentError("gone again")
    with pytest.raises(TrustError):
        hands.sign()
    assert hands.signer.health.retry_in_s == 1
    assert hardware.closed == 1  # what failed in use is let go of, and opened anew


def test_hardware_that_refuses_is_never_asked_again(hands: Hands, hardware: Hardware) -> None:
    hardware.failure = KeyRefusedError("wrong PIN")
    with pytest.raises(KeyRefusedError):
        hands.sign()
    hands.now_s += 1e6
    hardware.failure = None
    with pytest.raises(KeyRefusedError, match="wrong PIN"):
        hands.sign()
    assert hardware.opened == 1
    assert hands.signer.health.retry_in_s is None


def test_another_key_in_the_hardware_is_not_this_units(hardware: Hardware) -> None:
    hands, replaced = Hands(hardware), Hardware()
    swapped = HardwareSigner(replaced.open, hands.signer.known, limit_s=LIMIT_S)
    with pytest.raises(TrustError, match=r"the hardware holds the key .* enrol this unit anew"):
        asyncio.run(swapped.sign(b"x"))
    assert (replaced.signed, replaced.closed, swapped.health.state) == (0, 1, KeyState.FAILED)
    for signer in (hands.signer, swapped):
        signer.close()


def test_hardware_that_hangs_holds_up_neither_the_loop_nor_a_second_caller(hardware: Hardware) -> None:
    """The loop turns on, both callers are told in time, what waited is not done later, and all goes on afterwards."""
    hands = Hands(hardware, limit_s=0.1)
    hardware.goes_on.clear()

    async def story() -> None:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turning = asyncio.get_running_loop().create_task(turn())
        results = await asyncio.gather(hands.signer.sign(b"x"), hands.signer.sign(b"y"), return_exceptions=True)
        turning.cancel()
        assert turns > 100
        assert [type(one) for one in results] == [KeySlowError, KeySlowError]
        assert "did not answer within 0.1 s" in str(results[0])
        assert hands.signer.health.state is KeyState.SLOW

    asyncio.run(story())
    hardware.goes_on.set()
    hands.now_s += 60
    wait_for(lambda: hands.signer.health.state is KeyState.READY)  # the one that hung comes to its end
    assert hardware.signed == 1
    hands.signer._limit_s = LIMIT_S
    assert hands.sign()
    assert hardware.signed == 2
    hands.signer.close()


def test_a_thread_that_may_wait_has_it_as_a_signer(hands: Hands, hardware: Hardware) -> None:
    signer: Signer = BlockingSigner(hands.signer)
    assert (signer.keyid, signer.protection, signer.public_key_pem()) == (
        hardware.keyid,
        "file",
        hardware.public_key_pem(),
    )
    assert dsse.signature_holds(hardware.public_key(), signer.sign(b"x"), b"x")
    hardware.failure = KeyAbsentError("gone")
    with pytest.raises(KeyAbsentError, match="gone"):
        signer.sign(b"x")


def test_a_thread_that_may_wait_does_so_within_the_limit(hardware: Hardware) -> None:
    hands = Hands(hardware, limit_s=0.05)
    hardware.goes_on.clear()
    with pytest.raises(KeySlowError):
        BlockingSigner(hands.signer).sign(b"x")
    hardware.goes_on.set()
    hands.signer.close()


def test_closing_lets_go_of_the_hardware_and_ends_the_thread(hardware: Hardware) -> None:
    before = set(threading.enumerate())
    hands = Hands(hardware)
    hands.sign()
    (thread,) = set(threading.enumerate()) - before
    hands.signer.close()
    wait_for(lambda: not thread.is_alive())
    assert hardware.closed == 1


def wait_for(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.005)
