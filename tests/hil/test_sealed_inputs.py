"""Sealed inputs, from the dispatcher's disk to the car's memory: announced, granted, fetched, opened, refused."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.core.model import Grant
from agent.errors import FleetError
from agent.fleet.channel import Cut, Web
from agent.fleet.desk import sealed_object, to_grant
from agent.fleet.enrolment_messages import Rotation
from agent.fleet.inline import InlineInputs
from agent.fleet.messages import Envelope, JobGrant, ObjectRef, SealingKeyMessage, encode
from agent.fleet.partials import Partials
from agent.fleet.retry import Patience
from agent.sealing import Sealing, establish_sealing
from agent.transfers import Transfers
from agent.trust.keys import FileSigner
from agent.trust.sealing import SEALED_CHUNK_BYTES, SealError, SealFault, seal_whole
from agent.trust.succession import succeed
from hil.dispatcher.book import Terms
from hil.dispatcher.leases import Places
from hil.dispatcher.objects import Objects
from hil.dispatcher.sealing import InputSealing
from hil.dispatcher.submit import job_grant
from hil.dispatcher.web import WebServer
from tests.hil.honest_car import PACKAGE, Car, Desk, new_signer

BIG = bytes(range(256)) * 5_000
"""1,280,000 bytes: twenty chunks, and long enough that what has come of it is kept on the disk."""


pytestmark = pytest.mark.usefixtures("each_database")


class Fleet:
    """The real dispatcher with its web server, and honest cars."""

    def __init__(self, folder: Path, *, every: bool) -> None:
        self.desk = Desk(folder)
        self.objects = Objects(self.desk.objects.folder, InputSealing("ab" * 16, every=every))
        self.desk.objects = self.objects
        self.web = WebServer(0, self.objects, lambda body: body)
        self.web.start()
        self.desk.service._places = Places(object_url=self.url, small=self.objects.small, sealing=self.objects.sealing)
        self._numbers = itertools.count()

    def url(self, name: str) -> str:
        return f"{self.web.url}/objects/{name}"

    def car(self, folder: Path) -> tuple[Car, Sealing]:
        car = self.desk.new_car(f"car-{next(self._numbers)}")
        (folder / car.unit).mkdir()
        sealing = establish_sealing(folder / car.unit, car.unit, car.signer, 1_000)
        assert sealing is not None
        return car, sealing

    def big_job(self, *, sealed: bool = True) -> str:
        sha256 = hashlib.sha256(BIG).hexdigest()
        job = job_grant(
            job=f"big-{next(self._numbers)}",
            customer="acme",
            package=PACKAGE,
            input=ObjectRef(url="", sha256=sha256, bytes=len(BIG)),
            items=4,
            slice_items=4,
            price_micro_per_item=1,
            currency="EUR",
            ttl_s=600,
        )
        if sealed:
            self.objects.only_sealed(sha256)
        self.objects.put(BIG)
        self.desk.book.add_job(job, Terms(sealed=sealed))
        return job.job


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path / "fleet", every=False)
    yield made
    made.web.close()
    made.desk.book.close()


def announce(car: Car, sealing: Sealing) -> None:
    car.say("sealing", encode(SealingKeyMessage(sealing_key=msgspec.json.decode(sealing.announcement, type=Envelope))))


def taken(job: JobGrant, sealing: Sealing | None, folder: Path) -> bytes:
    """The input as the car has it in memory."""
    grant = to_grant(job, b"")
    inputs = InlineInputs()
    inputs.keep(job.input, sealed_object(grant) if grant.input_sealed else None)
    return asyncio.run(_taken(grant, sealing, folder, inputs))


async def _taken(grant: Grant, sealing: Sealing | None, folder: Path, inputs: InlineInputs) -> bytes:
    transfers = Transfers(
        Web(allow_loopback_http=True),
        Partials(folder / "transfers", reserve_bytes=0, worth_bytes=1),
        inline=inputs.get,
        input_patience=lambda _grant: Patience(for_s=0),
        sealing=None if sealing is None else sealing.keys,
    )
    memory = await transfers.input_of(transfers.channel(), grant)
    try:
        return memory.read()
    finally:
        memory.close()


def test_a_job_that_asks_for_it_goes_only_to_a_unit_with_a_key(fleet: Fleet, tmp_path: Path) -> None:
    car, sealing = fleet.car(tmp_path)
    fleet.big_job()
    assert car.request() is None
    announce(car, sealing)
    job = car.must_request()
    assert job.input.sealed is not None
    assert taken(job, sealing, tmp_path) == BIG
    assert not list((tmp_path / "transfers").iterdir())


def test_what_is_sealed_leaves_in_no_other_way(fleet: Fleet, tmp_path: Path) -> None:
    car, sealing = fleet.car(tmp_path)
    announce(car, sealing)
    fleet.big_job()
    job = car.must_request()
    plain = msgspec.structs.replace(job.input, url=fleet.url(job.input.sha256), sealed=None)
    with pytest.raises(FleetError, match="404"):
        taken(msgspec.structs.replace(job, input=plain), sealing, tmp_path)


def test_another_job_with_the_same_input_is_sealed_too(fleet: Fleet, tmp_path: Path) -> None:
    keyless, _ = fleet.car(tmp_path)
    fleet.big_job(sealed=False)
    fleet.big_job(sealed=True)
    fleet.big_job(sealed=False)
    assert keyless.request() is None


def test_a_unit_that_lost_its_grant_from_before_gets_none_unsealed(fleet: Fleet, tmp_path: Path) -> None:
    keyless, _ = fleet.car(tmp_path)
    fleet.big_job(sealed=False)
    assert keyless.must_request().input.sealed is None
    fleet.big_job(sealed=True)
    assert keyless.request() is None, "and the dispatcher has answered"


@pytest.mark.parametrize("sealed", [True, False])
def test_a_small_input_travels_sealed_in_its_grant(fleet: Fleet, tmp_path: Path, *, sealed: bool) -> None:
    car, sealing = fleet.car(tmp_path)
    announce(car, sealing)
    fleet.desk.add_job(terms=Terms(sealed=sealed))
    job = car.must_request()
    assert bool(job.input.body)
    assert (job.input.sealed is not None) == sealed
    plain = taken(job, sealing, tmp_path)
    assert hashlib.sha256(plain).hexdigest() == job.input.sha256
    assert (b"item 1" in plain, "item 1" in job.input.body) == (True, False)


def test_every_input_is_sealed_where_the_dispatcher_is_told_to(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "fleet", every=True)
    try:
        car, sealing = fleet.car(tmp_path)
        fleet.big_job(sealed=False)
        unsealed = car.must_request()
        assert unsealed.input.sealed is None, "it has told of no key yet"
        announce(car, sealing)
        resent = car.must_request()
        assert (resent.epoch, resent.input.sealed is not None) == (unsealed.epoch, True)
        assert taken(resent, sealing, tmp_path) == BIG
    finally:
        fleet.web.close()
        fleet.desk.book.close()


def test_only_the_unit_it_is_for_can_open_it(fleet: Fleet, tmp_path: Path) -> None:
    mine, sealing = fleet.car(tmp_path)
    _, others = fleet.car(tmp_path)
    announce(mine, sealing)
    fleet.big_job()
    job = mine.must_request()
    faults = []
    wanted = msgspec.structs.replace
    assert job.input.sealed is not None
    bent = wanted(job.input.sealed, wrapped_key="A" * 86 + "==")
    for grant, keys in ((job, others), (job, None), (wanted(job, epoch=2), sealing), (wanted(job, job="j"), sealing)):
        with pytest.raises(SealError) as error:
            taken(grant, keys, tmp_path)
        faults.append(error.value.fault)
    with pytest.raises(SealError) as error:
        taken(wanted(job, input=wanted(job.input, sealed=bent)), sealing, tmp_path)
    assert [*faults, error.value.fault] == [
        SealFault.UNKNOWN_KEY,
        SealFault.UNSUPPORTED,
        SealFault.NOT_FOR_THIS,
        SealFault.NOT_FOR_THIS,
        SealFault.NOT_FOR_THIS,
    ]


def test_it_goes_on_where_it_was_broken_off_and_only_sealed_bytes_are_on_the_disk(fleet: Fleet, tmp_path: Path) -> None:
    car, sealing = fleet.car(tmp_path)
    announce(car, sealing)
    fleet.big_job()
    job = car.must_request()
    what = sealed_object(to_grant(job, b""))
    assert fleet.objects.sealing is not None
    whole = seal_whole(fleet.objects.sealing.content_key(what), what, BIG)
    part = tmp_path / "transfers" / f"{what.name}.part"
    part.parent.mkdir()
    part.write_bytes(whole[: 7 * SEALED_CHUNK_BYTES + 11])
    resent = car.must_request()
    assert resent.input.sealed != job.input.sealed, "wrapped anew, and the same bytes below"
    assert taken(resent, sealing, tmp_path) == BIG
    part.write_bytes(whole[: 3 * SEALED_CHUNK_BYTES] + bytes(5_000) + whole[3 * SEALED_CHUNK_BYTES + 5_000 :][:80_000])
    assert taken(resent, sealing, tmp_path) == BIG, "what a power cut spoiled is fetched anew"
    with Partials(tmp_path / "other", reserve_bytes=0, worth_bytes=1).open(what.name, what.sealed_bytes, Cut()) as one:
        one.add(whole[:100_000])
    (kept,) = (tmp_path / "other").iterdir()
    assert kept.read_bytes() == whole[:100_000]
    assert BIG[:64] not in kept.read_bytes()


@pytest.mark.parametrize("spoil", [lambda body: body[:100] + b"\0" + body[101:], lambda body: body[::-1]])
def test_an_object_that_changed_on_the_dispatchers_disk_is_refused(fleet: Fleet, tmp_path: Path, spoil: object) -> None:
    """It opens, and is not what the signed grant names."""
    car, sealing = fleet.car(tmp_path)
    announce(car, sealing)
    fleet.big_job()
    job = car.must_request()
    assert callable(spoil)
    (fleet.objects.folder / job.input.sha256).write_bytes(spoil(BIG))
    with pytest.raises(FleetError, match="was promised"):
        taken(job, sealing, tmp_path)


def test_a_key_counts_by_the_units_own_signature_and_never_an_older_one(fleet: Fleet, tmp_path: Path) -> None:
    car, sealing = fleet.car(tmp_path)
    other, theirs = fleet.car(tmp_path)
    announce(car, theirs)
    assert fleet.desk.book.sealing_keys.of(car.unit) is None
    announce(car, sealing)
    newer = establish_sealing(tmp_path / car.unit, car.unit, car.signer, 100_000_000)
    assert newer is not None
    announce(car, newer)
    announce(car, sealing)  # recorded by somebody, and sent again
    known = fleet.desk.book.sealing_keys.of(car.unit)
    assert known is not None
    assert known.epoch == newer.keys.newest.epoch
    assert fleet.desk.book.sealing_keys.of(other.unit) is None
    assert fleet.desk.service.counts["refused"] == 1


def hands_over(fleet: Fleet, car: Car, signer: FileSigner, overlap_s: int) -> None:
    """The dispatcher has taken the car's next key."""
    envelope = succeed(car.signer, signer, unit=car.unit, epoch=2, overlap_s=overlap_s, reason="", last_session=1)
    fleet.desk.service.rotate(encode(Rotation(succession=msgspec.json.decode(envelope, type=Envelope))))


def test_a_key_that_handed_over_counts_during_the_overlap_but_replaces_nothing(fleet: Fleet, tmp_path: Path) -> None:
    car, sealing = fleet.car(tmp_path)
    new, book = new_signer(), fleet.desk.book.sealing_keys
    hands_over(fleet, car, new, 60)
    announce(car, sealing)  # the car has not heard yet that its succession was taken
    known = book.of(car.unit)
    assert known is not None
    assert known.epoch == sealing.keys.newest.epoch
    stolen = establish_sealing(tmp_path / car.unit, car.unit, car.signer, 100_000_000)
    assert stolen is not None
    announce(car, stolen)
    assert book.of(car.unit) == known
    assert fleet.desk.service.counts["refused"] == 1
    announce(car, sealing)
    assert fleet.desk.service.counts["refused"] == 1, "what is known is no reason to complain"
    renewed = establish_sealing(tmp_path / car.unit, car.unit, new, 100_000_000)
    assert renewed is not None
    announce(car, renewed)
    known = book.of(car.unit)
    assert known is not None
    assert known.epoch == renewed.keys.newest.epoch


def test_after_the_overlap_a_key_that_handed_over_vouches_for_nothing(fleet: Fleet, tmp_path: Path) -> None:
    car, sealing = fleet.car(tmp_path)
    hands_over(fleet, car, new_signer(), 60)
    fleet.desk.now_ms += 61_000
    announce(car, sealing)
    assert fleet.desk.book.sealing_keys.of(car.unit) is None
    assert fleet.desk.service.counts["refused"] == 1
