"""Every reason for which a grant, a package or a dispatcher's key is refused, each by itself; and what is taken."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.trust import dsse
from agent.trust.admission import (
    SUMS,
    NotAdmittedError,
    Reason,
    Standing,
    check_new,
    check_package,
    check_policy,
    check_release,
    check_rollback,
    take,
)
from agent.trust.catalogue import (
    Catalogue,
    CatalogueError,
    CatalogueFault,
    Denied,
    DenyList,
    DispatcherKey,
    Dispatchers,
    Listed,
    Versions,
)
from agent.trust.grant import GrantClaims, check_grant, verify_order
from agent.trust.keys import FileSigner
from agent.trust.version_floors import Floored, VersionFloors

TYPE = "application/vnd.driveway.grant+json"
OCR, OLD = "ab" * 32, "cd" * 32
CLAIMS = GrantClaims(unit="car-1", nonce="0" * 32, package="ocr", package_sha256=OCR, valid_s=600, renew_s=60)
OLD_KEY, KEY, STRANGER, PINNED = (FileSigner(generate_private_key(SECP256R1())) for _ in range(4))


def dispatcher(signer: FileSigner, epoch: int) -> DispatcherKey:
    der = signer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return DispatcherKey(epoch, "d", base64.b64encode(der).decode())


CATALOGUE = Catalogue(
    versions=Versions(1, 1, 1, 1),
    signed_ms=0,
    expires_ms=1_000_000,
    packages=(Listed("ocr", "1.4.0", OCR, 10), Listed("ocr", "1.3.0", OLD, 10)),
    releases=(Listed("driveway-agent", "0.2.0", "11" * 32, 10),),
    dispatchers=Dispatchers(2, (dispatcher(OLD_KEY, 1), dispatcher(KEY, 2))),
)


def standing(catalogue: Catalogue | None = CATALOGUE, *, now_ms: int = 999_999, agent: str = "0.2.0") -> Standing:
    floors = VersionFloors(lambda _: None)
    return Standing(catalogue, floors, now_ms, agent, {PINNED.keyid: PINNED.public_key()})


def denying(**lists: tuple[Denied, ...]) -> Standing:
    return standing(replace(CATALOGUE, denied=DenyList(number=1, **lists)))


def reason_of(claims: GrantClaims, one: Standing | None, *, held: bool = False) -> Reason:
    with pytest.raises(NotAdmittedError) as refused:
        check_grant(claims, unit="car-1", standing=one, held=held)
    assert refused.value.reason.value in str(refused.value)
    return refused.value.reason


def key_reason(envelope: bytes, one: Standing) -> Reason:
    with pytest.raises(NotAdmittedError) as refused:
        verify_order(envelope, TYPE, one)
    return refused.value.reason


# --- what is taken ----------------------------------------------------------------------------------------------


def test_a_grant_in_order_is_taken() -> None:
    check_grant(CLAIMS, unit="car-1", standing=standing())


def test_without_a_catalogue_packages_are_not_judged() -> None:
    check_grant(replace(CLAIMS, package_sha256="ef" * 32), unit="car-1", standing=None)


def test_an_order_by_a_delegated_key_is_verified() -> None:
    assert verify_order(dsse.sign(TYPE, b"{}", KEY), TYPE, standing()) == b"{}"


def test_one_signature_that_counts_is_enough() -> None:
    envelope = dsse.add_signature(dsse.sign(TYPE, b"{}", OLD_KEY), KEY)
    assert verify_order(envelope, TYPE, standing()) == b"{}"
    assert verify_order(dsse.add_signature(dsse.sign(TYPE, b"{}", KEY), STRANGER), TYPE, standing()) == b"{}"


@pytest.mark.parametrize("catalogue", [None, replace(CATALOGUE, dispatchers=None)])
def test_the_pinned_key_counts_where_no_catalogue_names_any(catalogue: Catalogue | None) -> None:
    assert verify_order(dsse.sign(TYPE, b"{}", PINNED), TYPE, standing(catalogue)) == b"{}"


def test_a_renewal_is_taken_past_expiry_and_by_a_denied_agent() -> None:
    """What is at work goes on; only nothing new begins."""
    check_grant(CLAIMS, unit="car-1", standing=standing(now_ms=2_000_000), held=True)
    check_grant(CLAIMS, unit="car-1", standing=denying(agents=(Denied("0.2.0"),)), held=True)


# --- whose signature --------------------------------------------------------------------------------------------


def test_forged_by_a_signature_that_does_not_hold() -> None:
    parsed = dsse.parse(dsse.sign(TYPE, b"{}", KEY))
    assert key_reason(dsse.wrap(TYPE, b"[]", parsed.signatures), standing()) is Reason.FORGED


def test_forged_as_another_type() -> None:
    assert key_reason(dsse.sign("application/other", b"{}", KEY), standing()) is Reason.FORGED


def test_forged_as_no_envelope_at_all() -> None:
    assert key_reason(b"not an envelope", standing()) is Reason.FORGED


def test_key_unknown() -> None:
    assert key_reason(dsse.sign(TYPE, b"{}", STRANGER), standing()) is Reason.KEY_UNKNOWN


def test_key_unknown_once_the_catalogue_names_others_than_the_pinned() -> None:
    assert key_reason(dsse.sign(TYPE, b"{}", PINNED), standing()) is Reason.KEY_UNKNOWN


def test_key_denied() -> None:
    one = denying(dispatchers=(Denied(KEY.keyid, "stolen"),))
    assert key_reason(dsse.sign(TYPE, b"{}", KEY), one) is Reason.KEY_DENIED


def test_key_denied_also_where_it_is_pinned() -> None:
    denied = DenyList(1, dispatchers=(Denied(PINNED.keyid),))
    one = standing(replace(CATALOGUE, dispatchers=None, denied=denied))
    assert key_reason(dsse.sign(TYPE, b"{}", PINNED), one) is Reason.KEY_DENIED


def test_key_epoch() -> None:
    assert key_reason(dsse.sign(TYPE, b"{}", OLD_KEY), standing()) is Reason.KEY_EPOCH


@settings(derandomize=True)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_forged(body: bytes) -> None:
    assert key_reason(body, standing()) is Reason.FORGED


# --- what it says -----------------------------------------------------------------------------------------------


def test_audience() -> None:
    assert reason_of(replace(CLAIMS, unit="car-2"), standing()) is Reason.AUDIENCE


@pytest.mark.parametrize("nonce", ["", "0" * 14, "0" * 17, "0" * 66, "G" * 16, "ab" * 8 + "\n", "AB" * 8])
def test_nonce(nonce: str) -> None:
    assert reason_of(replace(CLAIMS, nonce=nonce), standing()) is Reason.NONCE


@pytest.mark.parametrize(("valid_s", "renew_s"), [(0, 0), (-1, 0), (86_401, 0), (60, 60), (60, 61), (60, -1)])
def test_validity(valid_s: int, renew_s: int) -> None:
    assert reason_of(replace(CLAIMS, valid_s=valid_s, renew_s=renew_s), standing()) is Reason.VALIDITY


def test_catalogue_missing() -> None:
    assert reason_of(CLAIMS, standing(None)) is Reason.CATALOGUE_MISSING


@pytest.mark.parametrize("now_ms", [1_000_000, 9_000_000])
def test_catalogue_expired(now_ms: int) -> None:
    assert reason_of(CLAIMS, standing(now_ms=now_ms)) is Reason.CATALOGUE_EXPIRED


def test_package_unlisted() -> None:
    assert reason_of(replace(CLAIMS, package_sha256="ef" * 32), standing()) is Reason.PACKAGE_UNLISTED


def test_package_name() -> None:
    assert reason_of(replace(CLAIMS, package="detector"), standing()) is Reason.PACKAGE_NAME


def test_package_name_covers_the_version_that_the_manifest_says() -> None:
    check_package(standing(), "ocr", OCR, "1.4.0")
    with pytest.raises(NotAdmittedError) as refused:
        check_package(standing(), "ocr", OCR, "1.5.0")
    assert refused.value.reason is Reason.PACKAGE_NAME


@pytest.mark.parametrize("held", [False, True])
def test_package_denied_even_while_it_is_at_work(held: bool) -> None:
    one = denying(packages=(Denied(OCR, "CVE-2026-1"),))
    assert reason_of(CLAIMS, one, held=held) is Reason.PACKAGE_DENIED


def test_package_denied_even_when_nothing_lists_it() -> None:
    one = standing(replace(CATALOGUE, packages=(), denied=DenyList(1, packages=(Denied(OCR),))))
    assert reason_of(CLAIMS, one) is Reason.PACKAGE_DENIED


def test_package_downgrade() -> None:
    one = standing()
    take(CATALOGUE, one.floors, "0.2.0")
    check_grant(CLAIMS, unit="car-1", standing=one)
    assert reason_of(replace(CLAIMS, package_sha256=OLD), one) is Reason.PACKAGE_DOWNGRADE


def test_package_downgrade_holds_when_only_the_old_one_is_listed() -> None:
    """A stolen packages key takes the good version away and lists the bad one again."""
    one = standing()
    take(CATALOGUE, one.floors, "0.2.0")
    rolled_back = replace(one, catalogue=replace(CATALOGUE, packages=CATALOGUE.packages[1:]))
    assert reason_of(replace(CLAIMS, package_sha256=OLD), rolled_back) is Reason.PACKAGE_DOWNGRADE


def test_agent_denied() -> None:
    assert reason_of(CLAIMS, denying(agents=(Denied("0.2.0", "loses slices"),))) is Reason.AGENT_DENIED


def test_agent_downgrade() -> None:
    one = standing()
    take(CATALOGUE, one.floors, "0.2.0")
    check_new(one)
    assert reason_of(CLAIMS, replace(one, agent_version="0.1.9")) is Reason.AGENT_DOWNGRADE


def test_an_agent_that_the_catalogue_does_not_list_raises_no_floor() -> None:
    """A version that is published before a car has it shuts no car out, nor does one that was tried on a rig."""
    one = standing(agent="0.1.0")
    take(CATALOGUE, one.floors, "0.1.0")
    check_new(one)
    take(CATALOGUE, one.floors, "9.9")
    check_new(one)


def test_an_agent_on_trial_raises_no_floor() -> None:
    """It may yet have to make room for the one before, which is to earn then."""
    one = standing(agent="0.1.0")
    take(CATALOGUE, one.floors, "0.2.0", on_trial=True)
    check_new(one)
    take(CATALOGUE, one.floors, "0.2.0")
    with pytest.raises(NotAdmittedError) as refused:
        check_new(one)
    assert refused.value.reason is Reason.AGENT_DOWNGRADE


# --- releases of the agent ----------------------------------------------------------------------------------------

LISTED_SUMS = replace(
    CATALOGUE,
    releases=(
        Listed("driveway-agent", "0.2.0", "11" * 32, 10, "driveway_0.2.0_amd64.deb"),
        Listed("driveway-agent", "0.3.0", "22" * 32, 10, "driveway_0.3.0_amd64.deb"),
        Listed("driveway-agent", "0.3.0", "33" * 32, 10, f"{SUMS}.amd64"),
        Listed("driveway-agent", "0.3.0", "44" * 32, 10, f"{SUMS}.arm64"),
    ),
)
"""Of 0.3.0 the files are named, for two architectures, of 0.2.0 they are not."""


def release_refused(one: Standing, version: str, sums: str = "") -> Reason | None:
    try:
        check_release(one, version, sums)
    except NotAdmittedError as error:
        return error.reason
    return None


def test_a_release_that_is_listed_may_be_installed() -> None:
    assert release_refused(standing(), "0.2.0") is None
    assert release_refused(standing(), "0.2") is None, "the same version"
    assert release_refused(standing(LISTED_SUMS), "0.2.0", "99" * 32) is None, "its files are not named"
    for sums in ("33" * 32, "44" * 32):
        assert release_refused(standing(LISTED_SUMS), "0.3.0", sums) is None


def test_release_unlisted() -> None:
    assert release_refused(standing(), "0.4.0") is Reason.RELEASE_UNLISTED
    assert release_refused(standing(replace(CATALOGUE, releases=())), "0.4.0") is None, "it says nothing of releases"


@pytest.mark.parametrize("sums", ["", "22" * 32])
def test_release_changed(sums: str) -> None:
    assert release_refused(standing(LISTED_SUMS), "0.3.0", sums) is Reason.RELEASE_CHANGED


def test_a_release_that_is_denied_or_below_the_floor() -> None:
    denied = standing(replace(CATALOGUE, denied=DenyList(1, agents=(Denied("0.2", "loses slices"),))))
    assert release_refused(denied, "0.2.0") is Reason.AGENT_DENIED
    one = standing()
    take(CATALOGUE, one.floors, "0.2.0")
    assert release_refused(one, "0.1.9") is Reason.AGENT_DOWNGRADE
    assert release_refused(one, "0.2.0") is None


def test_an_update_may_mend_what_keeps_the_catalogue_away() -> None:
    """Without one, and with one that has expired, what is remembered or denied is all that speaks against a release."""
    late = replace(CATALOGUE, denied=DenyList(1, agents=(Denied("0.5.0"),)))
    expired = replace(standing(late), now_ms=CATALOGUE.expires_ms)
    assert release_refused(expired, "0.4.0") is None
    assert release_refused(expired, "0.5.0") is Reason.AGENT_DENIED
    nothing = replace(standing(), catalogue=None)
    assert release_refused(nothing, "0.4.0") is None
    nothing.floors.saw({(Floored.AGENT, ""): "0.4.1"})
    assert release_refused(nothing, "0.4.0") is Reason.AGENT_DOWNGRADE


def test_policy_downgrade() -> None:
    one = standing()
    take(replace(CATALOGUE, policies=(Listed("family", "2", OCR, 1),)), one.floors, "0.2.0")
    older = replace(CATALOGUE, policies=(Listed("family", "1", OLD, 1),))
    with pytest.raises(NotAdmittedError) as refused:
        check_policy(older, one.floors, "family")
    assert refused.value.reason is Reason.POLICY_DOWNGRADE
    check_policy(older, one.floors, "another")


# --- what counts up in the catalogue itself -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "older",
    [
        replace(CATALOGUE, denied=DenyList(number=6)),
        replace(CATALOGUE, denied=DenyList(number=7), dispatchers=Dispatchers(1)),
        replace(CATALOGUE, denied=DenyList(number=7), dispatchers=None),
    ],
)
def test_a_deny_list_or_keys_from_before_are_a_rollback(older: Catalogue) -> None:
    floors = VersionFloors(lambda _: None)
    newer = replace(CATALOGUE, denied=DenyList(number=7))
    check_rollback(newer, floors)
    take(newer, floors, "0.2.0")
    check_rollback(newer, floors)
    with pytest.raises(CatalogueError) as refused:
        check_rollback(older, floors)
    assert refused.value.fault is CatalogueFault.ROLLBACK


def test_the_floors_are_those_of_the_newest_of_each_name() -> None:
    floors = VersionFloors(lambda _: None)
    take(CATALOGUE, floors, "0.2.0")
    assert floors.floor(Floored.PACKAGE, "ocr") == "1.4.0"
    assert floors.floor(Floored.AGENT) == "0.2.0"
    assert floors.floor(Floored.DISPATCHER_EPOCH) == "2"


def test_every_reason_has_a_test_of_its_own() -> None:
    text = Path(__file__).read_text("utf-8")
    assert [reason for reason in Reason if f"is Reason.{reason.name}" not in text] == []
