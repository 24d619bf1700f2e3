"""An honest operator's catalogue: what is believed of it, what is kept, and by whose clock it expires."""

from __future__ import annotations

import base64
import io
import zipfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from agent.errors import TrustError
from agent.trust.catalogue import (
    Catalogue,
    CatalogueError,
    CatalogueFault,
    DenyList,
    DispatcherKey,
    Dispatchers,
    Listed,
    Versions,
    dispatcher_keys,
)
from agent.trust.catalogue_client import judge_expiry_at
from agent.trust.catalogue_store import MAX_KEPT_BYTES
from agent.trust.keys import keyid
from hil.catalogue.command import add_dispatcher, deny
from tests.trust.catalogue_world import OCR, START, Spoil, World

DAY_MS = 86_400_000


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_the_operator_signed_is_believed(world: World) -> None:
    world.operator.put(OCR, b'{"name": "ocr"}')
    world.operator.put("policies/family/1.2/policy.toml", b"reserve_percent = 40\n")
    world.operator.put("releases/driveway-agent/0.1.0/driveway_agent-0.1.0-py3-none-any.whl", b"wheel")
    key = generate_private_key(SECP256R1()).public_key()
    add_dispatcher(world.operator, "d1", key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(), 3)
    deny(world.operator, "agents", "0.0.9", "loses slices")
    world.operator.publish()
    believed = world.refresh(world.car(policy="family"))
    (package,) = believed.packages
    assert (package.name, package.version, package.length) == ("ocr", "1.4.0", 15)
    assert believed.package(package.sha256) == package
    assert believed.policy_bytes == b"reserve_percent = 40\n"
    assert [(one.name, one.version) for one in believed.releases] == [("driveway-agent", "0.1.0")]
    assert believed.dispatchers is not None
    assert believed.dispatchers.minimum_epoch == 2
    assert dispatcher_keys(believed.dispatchers)[keyid(key)][0] == 3
    assert (believed.denied.number, believed.denied.agents[0].why) == (1, "loses slices")
    assert believed.expires_ms == world.ms(days=14)
    assert believed.signed_ms == world.ms()


def test_an_empty_catalogue_allows_nothing(world: World) -> None:
    believed = world.refresh(world.car())
    assert (believed.packages, believed.policies, believed.releases, believed.dispatchers) == ((), (), (), None)
    assert believed.denied == DenyList()


def test_nothing_is_believed_before_the_first_refresh(world: World) -> None:
    assert world.car().load() is None


def test_what_is_believed_is_read_back_without_a_network(world: World) -> None:
    world.operator.put(OCR, b"{}")
    deny(world.operator, "packages", "ab" * 32, "")
    world.operator.publish()
    believed = world.refresh(world.car())
    world.asked.clear()
    assert world.car().load() == believed
    assert world.asked == []


def test_it_is_read_back_when_it_has_long_expired(world: World) -> None:
    """The deny list counts for ever; until when the rest does is for the caller to judge."""
    deny(world.operator, "packages", "ab" * 32, "")
    world.operator.publish()
    world.refresh(world.car())
    again = world.car().load()
    assert again is not None
    assert again.denied.number == 1
    assert again.expires_ms < world.ms(days=4_000)


def test_a_refresh_that_finds_nothing_new_asks_for_two_files(world: World) -> None:
    car = world.car()
    believed = world.refresh(car)
    world.asked.clear()
    assert world.refresh(car) == believed
    assert world.asked == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_what_is_denied_is_denied_however_it_is_spelled(world: World) -> None:
    """An operator in a hurry: a digest in capitals or a short version must not be an entry that matches nothing."""
    deny(world.operator, "packages", "AB" * 32, "")
    deny(world.operator, "agents", "1.4", "")
    world.operator.publish()
    believed = world.refresh(world.car())
    assert believed.denies(believed.denied.packages, "ab" * 32) is not None
    assert believed.denies_agent("1.4.0") is not None
    assert believed.denies_agent("1.4.1") is None


def test_a_dispatcher_may_sign_with_ed25519(world: World) -> None:
    key = Ed25519PrivateKey.generate().public_key()
    add_dispatcher(world.operator, "d1", key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(), 3)
    world.operator.publish()
    assert set(dispatcher_keys(world.refresh(world.car()).dispatchers)) == {keyid(key)}


@pytest.mark.parametrize(
    ("kind", "what"), [("packages", "ab" * 31), ("packages", "ocr"), ("dispatchers", "notakey"), ("agents", "newest")]
)
def test_what_could_match_nothing_is_not_put_on_the_deny_list(world: World, kind: str, what: str) -> None:
    with pytest.raises(TrustError, match=what):
        deny(world.operator, kind, what, "")


def test_the_content_of_a_target_is_fetched_once(world: World) -> None:
    deny(world.operator, "packages", "ab" * 32, "")
    world.operator.publish()
    car = world.car()
    world.refresh(car)
    world.operator.put(OCR, b"{}")
    world.operator.publish()
    world.asked.clear()
    world.refresh(car)
    assert [name for name in world.asked if name.startswith("targets/")] == []


def test_the_newest_version_of_the_policy_is_fetched_by_number(world: World) -> None:
    for version in ("1.9", "1.10"):
        world.operator.put(f"policies/family/{version}/policy.toml", f"# {version}\n".encode())
    world.operator.publish()
    assert world.refresh(world.car(policy="family")).policy_bytes == b"# 1.10\n"


def test_what_is_withdrawn_is_listed_no_more(world: World) -> None:
    world.operator.put(OCR, b"{}")
    world.operator.publish()
    car = world.car()
    assert len(world.refresh(car).packages) == 1
    world.operator.withdraw(OCR)
    world.operator.publish()
    assert world.refresh(car).packages == ()


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "packages", "dispatchers"])
def test_the_key_of_every_role_can_be_replaced(world: World, role: str) -> None:
    world.operator.put(OCR, b"{}")
    world.operator.publish()
    car = world.car()
    world.refresh(car)
    world.operator.rotate(role)
    world.operator.publish()
    world.operator.check()
    assert len(world.refresh(car).packages) == 1
    assert len(world.refresh(world.car("another")).packages) == 1


def test_a_car_that_missed_three_roots_follows_them_and_reads_them_back(world: World) -> None:
    car = world.car()
    world.refresh(car)
    for _ in range(3):
        world.operator.rotate("root")
    world.operator.publish()
    believed = world.refresh(car)
    assert believed.versions.root == 4
    assert world.car().load() == believed


def test_a_refresh_that_is_not_accepted_changes_nothing(world: World) -> None:
    car = world.car()
    before = world.refresh(car)
    world.operator.put(OCR, b"{}")
    world.operator.publish()

    def no(_catalogue: Catalogue) -> None:
        raise CatalogueError(CatalogueFault.ROLLBACK, "not this one")

    with pytest.raises(CatalogueError):
        car.refresh(world.ms(), world.fetch, no)
    assert world.car().load() == before


def test_what_a_power_cut_leaves_of_a_refresh_is_swept_away(world: World, tmp_path: Path) -> None:
    believed = world.refresh(world.car())
    (tmp_path / "car" / "unpacked").mkdir()
    (tmp_path / "car" / "unpacked" / "timestamp.json").write_bytes(b"half")
    (tmp_path / "car" / "believed.zip.part").write_bytes(b"half")
    assert world.car().load() == believed
    assert not (tmp_path / "car" / "unpacked").exists()


def _bomb(_body: bytes) -> bytes:
    """A few kilobytes that fill the memory when they are unpacked."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("timestamp.json", bytes(2 * MAX_KEPT_BYTES))
    return made.getvalue()


DAMAGES = [lambda body: body[:-40], lambda _body: b"", lambda body: body[:99] + body[107:], _bomb]


@pytest.mark.parametrize("spoil", DAMAGES)
def test_a_damaged_file_is_told_and_replaced_by_the_next_refresh(world: World, tmp_path: Path, spoil: Spoil) -> None:
    believed = world.refresh(world.car())
    path = tmp_path / "car" / "believed.zip"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(CatalogueError, match="malformed"):
        world.car().load()
    assert world.refresh(world.car()) == believed
    assert world.car().load() == believed


def test_another_root_believes_nothing_of_what_was_kept(world: World, tmp_path: Path) -> None:
    world.refresh(world.car())
    stranger = World(tmp_path / "stranger")
    world.root = stranger.root
    with pytest.raises(CatalogueError):
        world.car().load()


# --- expiry, judged by the time that is given and nothing else ----------------------------------------------------


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "packages"])
def test_each_role_expires_by_the_time_that_is_given(world: World, role: str) -> None:
    """The wall clock of whoever runs this is a third time: were it asked for one role, this would fail for it."""
    world.operator.lifetime_days |= dict.fromkeys(world.operator.lifetime_days, 8_000) | {role: 4_000}
    for name in ("root", "targets", "dispatchers", "packages", "policies", "releases"):
        world.operator.renew(name)
    world.operator.publish()
    believed = world.refresh(world.car(), days=3_999)
    assert believed.expires_ms == world.ms(days=4_000)
    with pytest.raises(CatalogueError) as refused:
        world.refresh(world.car("late"), days=4_001)
    assert refused.value.fault is CatalogueFault.EXPIRED
    for long_ago in (-4_000, -8_000):
        world.refresh(world.car(f"early{long_ago}"), days=long_ago)


def test_a_python_tuf_that_keeps_no_reference_time_is_not_used(world: World) -> None:
    """Were the attribute renamed, the wall clock would decide again, and nothing else would show it."""

    class Renamed:
        _trusted_set = TrustedMetadataSet(world.root, EnvelopeType.METADATA)

    judge_expiry_at(Renamed(), START)  # type: ignore[arg-type]  # stands in for an Updater
    assert Renamed._trusted_set.reference_time == START
    del Renamed._trusted_set.reference_time
    with pytest.raises(CatalogueError, match="keeps no reference time"):
        judge_expiry_at(Renamed(), START)  # type: ignore[arg-type]


def test_a_timestamp_of_another_tool_was_signed_a_window_before_it_expires(world: World) -> None:
    metadata = world.operator.load("timestamp")
    metadata.signed.unrecognized_fields.clear()
    world.operator.save("timestamp", metadata)
    believed = world.refresh(world.car())
    assert believed.signed_ms == believed.expires_ms - 31 * DAY_MS


# --- the files --------------------------------------------------------------------------------------------------


def test_a_dispatcher_key_that_is_none_is_malformed() -> None:
    odd = Dispatchers(0, (DispatcherKey(1, "d1", base64.b64encode(bytes(91)).decode()),))
    with pytest.raises(CatalogueError, match="the key of 'd1'"):
        dispatcher_keys(odd)


def test_a_listed_package_is_found_by_its_digest_alone() -> None:
    listed = Listed("ocr", "1.4.0", "ab" * 32, 7)
    one = Catalogue(Versions(1, 1, 1, 1), 0, 1, packages=(listed,))
    assert one.package("ab" * 32) is listed
    assert one.package("cd" * 32) is None
