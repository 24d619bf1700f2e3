"""Whoever sits between a car and its operator, or holds some of the keys: each attack is refused, with its reason.

What was believed before stands after every one of them, and is what is read back at the next start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import TargetFile

from agent.errors import FleetError
from agent.trust.catalogue import Catalogue, CatalogueError, CatalogueFault
from hil.catalogue.command import deny
from tests.trust.catalogue_world import OCR, World

FILES = ("root", "timestamp", "snapshot", "targets", "packages", "dispatchers", "policies", "releases")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return _world(tmp_path)


def _world(folder: Path) -> World:
    """A catalogue with something in it, which a car believes."""
    world = World(folder)
    world.operator.put(OCR, b"{}")
    deny(world.operator, "packages", "ab" * 32, "")
    world.operator.publish()
    world.refresh(world.car())
    return world


def refused(world: World, *, days: float = 0.0) -> CatalogueFault:
    """How the car's refresh is refused; what it believed stands."""
    before = world.car().load()
    assert before is not None
    with pytest.raises(CatalogueError) as error:
        world.refresh(world.car(), days)
    assert world.car().load() == before
    return error.value.fault


def change(world: World) -> None:
    """The operator adds something to every role whose file the tests change."""
    for name in ("packages/ocr/1.5.0/manifest.json", "policies/p/1/policy.toml", "releases/a/1/a.whl"):
        world.operator.put(name, b"newer")
    for role in ("targets", "dispatchers"):
        world.operator.renew(role)
    world.operator.publish()


# --- the network ------------------------------------------------------------------------------------------------


def test_rollback_of_everything(world: World) -> None:
    old = world.published()
    change(world)
    world.refresh(world.car())
    world.frozen = old
    assert refused(world) is CatalogueFault.ROLLBACK


def test_rollback_of_the_snapshot_alone_is_a_mismatch(world: World) -> None:
    old = world.published()
    change(world)
    newest = max(name for name in world.published() if name.endswith(".snapshot.json"))
    world.spoiled[newest] = lambda _body: old["metadata/2.snapshot.json"]
    assert refused(world) in {CatalogueFault.MISMATCH, CatalogueFault.TOO_LONG}  # a signature's length varies


def test_freeze_ends_with_the_expiry(world: World) -> None:
    world.freeze()
    change(world)
    world.refresh(world.car(), days=13)
    assert refused(world, days=15) is CatalogueFault.EXPIRED


def test_an_expired_timestamp_is_not_taken_by_a_new_car(world: World) -> None:
    with pytest.raises(CatalogueError) as error:
        world.refresh(world.car("new"), days=15)
    assert error.value.fault is CatalogueFault.EXPIRED


def test_mix_and_match(world: World) -> None:
    """A role of another time, signed by the right keys."""
    old = world.published()
    change(world)
    newest = max(name for name in world.published() if name.endswith(".packages.json"))
    world.spoiled[newest] = lambda _body: old["metadata/2.packages.json"]
    assert refused(world) is CatalogueFault.MISMATCH


@pytest.mark.parametrize("name", ["snapshot", "targets", "packages", "policies"])
def test_wrong_length(world: World, name: str) -> None:
    change(world)
    world.spoiled[f".{name}.json"] = lambda body: body[:-1]
    assert refused(world) is CatalogueFault.MISMATCH


@pytest.mark.parametrize("name", ["root", "timestamp", "snapshot", "targets", "packages"])
def test_endless_data(world: World, name: str) -> None:
    world.operator.rotate("root")
    change(world)
    world.spoiled[f"{name}.json"] = lambda body: body + b" " * 4_000_000
    assert refused(world) is CatalogueFault.TOO_LONG


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_that_is_missing(world: World, name: str) -> None:
    change(world)
    world.frozen = {path: body for path, body in world.published().items() if not path.endswith(f"{name}.json")}
    assert refused(world) is CatalogueFault.UNREACHABLE


def test_a_network_that_is_down(world: World) -> None:
    before = world.car().load()

    def down(url: str, _most_bytes: int) -> bytes:
        raise FleetError(f"GET {url} failed: no route")

    with pytest.raises(CatalogueError, match="no route") as error:
        world.car().refresh(world.ms(), down, lambda _catalogue: None)
    assert error.value.fault is CatalogueFault.UNREACHABLE
    assert world.car().load() == before


def test_a_deny_list_of_other_content(world: World) -> None:
    deny(world.operator, "packages", "cd" * 32, "")
    world.operator.publish()
    world.spoiled[".deny.json"] = lambda body: body.replace(b"cd", b"ef")
    assert refused(world) is CatalogueFault.MISMATCH


def test_a_deny_list_without_an_end(world: World) -> None:
    deny(world.operator, "packages", "cd" * 32, "")
    world.operator.publish()
    world.spoiled[".deny.json"] = lambda body: body + b" " * 70_000
    assert refused(world) is CatalogueFault.TOO_LONG


def test_a_deny_list_that_is_kept_back(world: World) -> None:
    deny(world.operator, "packages", "cd" * 32, "")
    world.operator.publish()
    world.frozen = {path: body for path, body in world.published().items() if "deny" not in path}
    assert refused(world) is CatalogueFault.UNREACHABLE


# --- signatures -------------------------------------------------------------------------------------------------


def vouch(world: World, name: str, body: bytes) -> None:
    """Have the network bring this as the newest file of a role, with its length and hash in what vouches for it.

    That takes the online keys: whoever stole them can do it, and only the role's own key stands in the way.
    """
    operator, keys = world.operator, world.operator._keyring.available()
    world.spoiled[f"{name}.json"] = lambda _body: body
    if name in {"root", "timestamp"}:
        return
    above = "timestamp" if name == "snapshot" else "snapshot"
    metadata = operator.load(above)
    meta = metadata.signed.snapshot_meta if above == "timestamp" else metadata.signed.meta[f"{name}.json"]
    meta.length, meta.hashes = len(body), {"sha256": hashlib.sha256(body).hexdigest()}
    for keyid in operator.load("root").signed.roles[above].keyids:
        metadata.sign(keys[keyid])
    vouch(world, above, metadata.to_bytes())


@pytest.mark.parametrize("name", ["timestamp", "snapshot", "targets", "packages"])
def test_a_file_that_somebody_else_signed(world: World, tmp_path: Path, name: str) -> None:
    """Every byte is right but the signature, which is a stranger's under the name of the operator's key."""
    theirs = World(tmp_path / "stranger").operator.load(name).signatures
    change(world)
    metadata = world.operator.load(name)
    for signature in metadata.signatures.values():
        signature.signature = next(iter(theirs.values())).signature
    vouch(world, name, metadata.to_bytes())
    assert refused(world) is CatalogueFault.UNSIGNED


def test_a_root_that_lacks_a_signature_of_the_old_root(world: World) -> None:
    """Two of three keys are needed: the new root is signed by enough of its own, and by one of the old."""
    old = world.operator.load("root").signed.roles["root"].keyids
    world.operator.rotate("root")
    world.operator.rotate("root")
    skipped = world.operator.load("root")
    skipped.signed.version = 2
    for keyid in old[:2]:
        skipped.signatures.pop(keyid, None)
    world.operator.metadata.joinpath("2.root.json").write_bytes(skipped.to_bytes())
    assert refused(world) is CatalogueFault.UNSIGNED


def test_a_root_that_lacks_a_signature_of_its_own(world: World) -> None:
    world.operator.rotate("root")
    path = world.operator.metadata / "2.root.json"
    metadata = world.operator.load("root")
    own = set(metadata.signed.roles["root"].keyids)
    for keyid in sorted(own)[:2]:
        metadata.signatures.pop(keyid, None)
    path.write_bytes(metadata.to_bytes())
    assert refused(world) is CatalogueFault.UNSIGNED


def test_a_root_that_skips_a_version(world: World) -> None:
    world.operator.rotate("root")
    world.operator.rotate("root")
    (world.operator.metadata / "2.root.json").write_bytes((world.operator.metadata / "3.root.json").read_bytes())
    assert refused(world) is CatalogueFault.MISMATCH


@pytest.mark.parametrize("name", ["timestamp", "snapshot", "packages"])
def test_a_later_expiry_than_was_signed(world: World, name: str) -> None:
    change(world)
    world.spoiled[f"{name}.json"] = lambda body: re.sub(rb'("expires": *")20..', rb"\g<1>2099", body, count=1)
    assert refused(world) is (CatalogueFault.UNSIGNED if name == "timestamp" else CatalogueFault.MISMATCH)


# --- a role whose key was stolen --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("packages", "../../etc/passwd"),
        ("packages", "packages/../dispatchers.json"),
        ("packages", "packages/ocr/../manifest.json"),
        ("packages", "/packages/ocr/1.0/manifest.json"),
        ("packages", "packages/ocr/1.0/manifest.json/"),
        ("packages", "packages/ocr/1.0/manifest.json\n"),
        ("packages", "packages/ocr/1.0rc1/manifest.json"),
        ("packages", "packages\\ocr\\1.0\\manifest.json"),
        ("packages", "dispatchers.json"),
        ("packages", "deny.json"),
        ("policies", "packages/ocr/1.4.0/manifest.json"),
        ("releases", "releases/agent/1.0/../../x"),
        ("dispatchers", "deny.json"),
        ("targets", "packages/ocr/1.4.0/manifest.json"),
    ],
)
def test_a_role_that_lists_what_is_not_its_own(world: World, role: str, name: str) -> None:
    metadata = world.operator.load(role)
    metadata.signed.targets[name] = TargetFile(2, {"sha256": "ab" * 32}, name)
    world.operator.save(role, metadata)
    world.operator.publish()
    assert refused(world) is CatalogueFault.TARGET_NAME


def test_a_package_without_a_sha256(world: World) -> None:
    metadata = world.operator.load("packages")
    metadata.signed.targets[OCR] = TargetFile(2, {"sha512": "ab" * 64}, OCR)
    world.operator.save("packages", metadata)
    world.operator.publish()
    assert refused(world) is CatalogueFault.MALFORMED


def test_the_packages_key_delegates_to_nobody(world: World) -> None:
    """A role that it delegates to in turn is not looked at: what it lists does not count."""
    world.operator.rotate("packages")
    world.operator.publish()
    believed = world.refresh(world.car())
    metadata = world.operator.load("packages")
    metadata.signed.delegations = world.operator.load("targets").signed.delegations
    world.operator.save("packages", metadata)
    world.operator.publish()
    assert world.refresh(world.car()).packages == believed.packages


@pytest.mark.parametrize("body", [b"", b"[]", b'{"number": 1}', b"\xff", b'{"number":1.5}', b"9" * 5000, b"[" * 9000])
def test_a_deny_list_that_is_none(world: World, body: bytes) -> None:
    world.operator.put("deny.json", body)
    world.operator.publish()
    assert refused(world) is CatalogueFault.MALFORMED


def test_a_deny_list_that_is_too_large_to_be_fetched(world: World) -> None:
    world.operator.put("deny.json", b" " * 65_537)
    world.operator.publish()
    assert refused(world) is CatalogueFault.TOO_LONG


# --- arbitrary bytes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A car that is one of everything behind, with a new root on the way."""
    world = _world(tmp_path_factory.mktemp("changed"))
    world.operator.rotate("root")
    deny(world.operator, "packages", "cd" * 32, "")
    change(world)
    return world


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(body=st.binary(max_size=400))
def test_arbitrary_bytes_for_each_file(changed: World, name: str, body: bytes) -> None:
    changed.spoiled = {f"{name}.json": lambda _body: body}
    with pytest.raises(CatalogueError):
        changed.refresh(changed.car())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data(), value=JSON)
def test_any_value_in_the_place_of_any_other(changed: World, name: str, data: st.DataObject, value: object) -> None:
    """Signed by the right keys and vouched for, so that what reads it is reached: it is believed, or refused."""
    kept = changed.folder / "car" / "believed.zip"
    before = kept.read_bytes()
    whole = json.loads(changed.operator.load(name).to_bytes())
    place = whole["signed"]
    for _ in range(4):
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    whole["signatures"] = _signed_again(changed, whole)
    changed.spoiled = {}
    vouch(changed, name, json.dumps(whole).encode())
    try:
        with contextlib.suppress(CatalogueError):
            changed.refresh(changed.car())
    finally:
        assert isinstance(changed.car().load(), Catalogue)
        kept.write_bytes(before)


def _signed_again(world: World, whole: dict[str, Any]) -> list[dict[str, str]]:
    """What the operator's keys would sign of this, were they made to."""
    try:
        text = encode_canonical(whole["signed"]) or ""
    except FormatError:  # what cannot be signed comes with the signatures that it had
        return list(whole["signatures"])
    here = world.operator._keyring.available()
    return [here[one["keyid"]].sign(text.encode()).to_dict() for one in whole["signatures"] if one["keyid"] in here]
