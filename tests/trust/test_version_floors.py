"""No way back below a version that was seen signed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import TrustError
from agent.trust.version_floors import Floored, VersionFloors, version_key

VERSIONS = st.lists(st.integers(0, 99), min_size=1, max_size=5).map(lambda parts: ".".join(map(str, parts)))


def floors() -> tuple[VersionFloors, list[Mapping[str, str]]]:
    kept: list[Mapping[str, str]] = []
    return VersionFloors(kept.append), kept


def test_numbers_are_compared_as_numbers() -> None:
    assert version_key("1.10") > version_key("1.9")
    assert version_key("1.4") == version_key("1.4.0")
    assert version_key("2") > version_key("1.99.99.99.99")


@pytest.mark.parametrize("odd", ["", "1.", ".1", "1..2", "v1", "1.0rc1", "1.2.3.4.5.6", "1" * 10, "1\n", "-1", "1.٣"])
def test_what_is_no_version_is_refused(odd: str) -> None:
    with pytest.raises(TrustError, match="is no version"):
        version_key(odd)


def test_a_floor_is_by_kind_and_name() -> None:
    one, _ = floors()
    one.saw({(Floored.PACKAGE, "ocr"): "1.4.0", (Floored.POLICY, "ocr"): "2"})
    assert one.is_below(Floored.PACKAGE, "1.3.9", "ocr")
    assert not one.is_below(Floored.PACKAGE, "1.4", "ocr")
    assert not one.is_below(Floored.PACKAGE, "0.1", "detector")
    assert one.is_below(Floored.POLICY, "1.4.0", "ocr")


def test_only_what_has_risen_is_kept_and_all_of_it_comes_back() -> None:
    one, kept = floors()
    one.saw({(Floored.PACKAGE, "ocr"): "1.4"})
    one.saw({(Floored.PACKAGE, "ocr"): "1.3"})
    one.saw({(Floored.DENY_LIST, ""): "0"})
    assert kept == [{"package/ocr": "1.4"}]
    again, _ = floors()
    again.restore({**kept[-1], "package/odd": "nonsense"})
    assert again.floor(Floored.PACKAGE, "ocr") == "1.4"
    assert again.floor(Floored.PACKAGE, "odd") == "0"


@given(st.lists(VERSIONS, min_size=1))
def test_the_floor_is_the_newest_ever_seen(versions: list[str]) -> None:
    one, _ = floors()
    for version in versions:
        one.saw({(Floored.AGENT, ""): version})
    assert version_key(one.floor(Floored.AGENT)) == max(map(version_key, versions))
