"""What is shown of the daemon is well-formed by OpenMetrics, follows the conventions, and is what the view says."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module

import msgspec
import pytest

from agent.core.gates import RULES
from agent.metrics import families
from agent.metrics.collect import Snapshot, collect
from agent.metrics.families import LIMIT_OF_VALUES
from agent.metrics.text import LABEL_CHARACTERS, Family, Sample, openmetrics, prometheus
from tests.metrics.openmetrics import read
from tests.metrics.shots import at_rest, at_work, driver_back, under_attack

SHOTS = [at_rest, at_work, driver_back, under_attack]
BASE_UNITS = {"seconds", "celsius", "watts", "joules", "bytes", "ratio"}
NOT_BASE = re.compile(r"_(ms|milliseconds|minutes|hours|wh|kwh|kw|mw|percent|permille|kb|mb|fahrenheit|kelvin)(_|$)")


@pytest.mark.parametrize("shot", SHOTS)
def test_it_is_openmetrics(shot: Callable[[], Snapshot]) -> None:
    assert len(read(openmetrics(collect(shot())))) > 30


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: text.removesuffix("# EOF\n"),
        lambda text: text.replace("# TYPE driveway_state gauge", "# TYPE driveway_state stateset"),
        lambda text: text.replace("driveway_slices_kept_total", "driveway_slices_kept"),
        lambda text: text.replace("# UNIT driveway_energy_joules joules", "# UNIT driveway_energy_joules wh"),
        lambda text: text.replace("# EOF", "driveway_outbox_pending 3\n# EOF"),
        lambda text: text.replace("driveway_outbox_pending 2", "driveway_outbox_pending 2\ndriveway_outbox_pending 2"),
        lambda text: text.replace("driveway_outbox_pending 2", "driveway_outbox_pending two"),
        lambda text: text.replace('{gate="parked"}', '{gate="par"ked"}'),
    ],
)
def test_the_reader_finds_what_is_wrong(broken: Callable[[str], str]) -> None:
    text = openmetrics(collect(at_work()))
    assert broken(text) != text
    with pytest.raises((AssertionError, KeyError)):
        read(broken(text))


@pytest.mark.parametrize("shot", SHOTS)
def test_an_independent_reader_reads_the_same(shot: Callable[[], Snapshot]) -> None:
    pytest.importorskip("prometheus_client", reason="prometheus_client, an independent reader, is not installed")
    of_openmetrics = import_module("prometheus_client.openmetrics.parser").text_string_to_metric_families
    of_prometheus = import_module("prometheus_client.parser").text_string_to_metric_families
    collected = [(family, samples) for family, samples in collect(shot()) if samples]
    theirs = list(of_openmetrics(openmetrics(collected)))
    assert [one.name for one in theirs] == [family.name for family, _ in collected]
    assert [(one.type, one.unit) for one in theirs] == [(family.kind, family.unit) for family, _ in collected]
    older = list(of_prometheus(prometheus(collected)))
    for told in (theirs, older):
        values = [[sample.value for sample in one.samples] for one in told]
        assert values == [[float(sample.value) for sample in samples] for _, samples in collected]
        labels = [tuple(sample.labels.values()) for one in told for sample in one.samples]
        ours = [tuple(value[:LABEL_CHARACTERS] for value in one.labels) for _, samples in collected for one in samples]
        assert labels == ours, "escapes are read back"


@pytest.mark.parametrize("family", families.ALL, ids=lambda one: one.name)
def test_names_and_units_follow_the_conventions(family: Family) -> None:
    assert re.fullmatch(r"(driveway|process)(_[a-z]+)+", family.name)
    assert not family.name.endswith(("_total", "_info", "_count", "_sum", "_bucket", "_created"))
    assert not NOT_BASE.search(family.name)
    ending = family.name.rpartition("_")[2]
    assert family.unit == (ending if ending in BASE_UNITS else "")
    assert family.help.endswith(".")
    assert "\n" not in family.help


def test_no_metric_is_named_twice() -> None:
    names = [name for family in families.ALL for name in {family.name, family.sample_name}]
    assert len(set(names)) == len(names)


def test_names_from_outside_are_few_and_short() -> None:
    collected = [(family, list(samples)) for family, samples in collect(under_attack())]
    for family, samples in collected:
        assert len(samples) <= max(LIMIT_OF_VALUES, len(RULES)), family.name
    assert sum(len(samples) for _, samples in collected) < 250
    assert max(map(len, openmetrics(collected).splitlines())) < 4 * LABEL_CHARACTERS
    (dropped,) = [samples for family, samples in collected if family is families.LINK_DROPPED]
    assert sum(sample.value for sample in dropped) == sum(range(5_000)), "the rest is counted together"
    assert ("other",) in [sample.labels for sample in dropped]


def test_the_figures_are_the_views_in_base_units() -> None:
    shot = at_work()
    told = read(openmetrics(collect(shot)))

    def one(name: str, **labels: str) -> float:
        for read_family in told.values():
            found = read_family.samples.get((name, tuple(labels.items())))
            if found is not None:
                return found
        raise AssertionError(name)

    assert one("driveway_energy_joules_total") == 1.5 * 3600
    assert one("driveway_earnings_gross_total", currency=shot.status.earnings.currency) == 2.5
    assert one("driveway_earnings_net", currency=shot.status.earnings.currency) == 2.2
    assert one("driveway_vacate_seconds", quantile="0.99") == 0.083
    assert one("driveway_vacate_seconds_count") == 7
    assert one("driveway_battery_charge_ratio") == 0.815
    assert one("driveway_battery_pack_celsius") == 24
    assert one("driveway_state", state="running") == 1
    assert one("driveway_lease_active") == 1
    assert one("driveway_source_events_total", source="party", kind="checksum") == 3
    assert one("driveway_log_held_back_total") == 9
    assert one("process_resident_memory_bytes") == 45_000_000
    assert "driveway_ambient_celsius" not in told, "what cannot be believed is not shown"
    assert one("driveway_signal_problems") == 1


def test_a_gate_is_shown_as_it_stands() -> None:
    shot = driver_back()
    told = read(openmetrics(collect(shot)))["driveway_gate_level"].samples
    assert len(told) == len(RULES)
    closed = {reason.gate for reason in shot.status.reasons if reason.state == "closed"}
    assert closed
    assert {labels[0][1] for (_, labels), level in told.items() if level == 2} == closed
    told = read(openmetrics(collect(at_work())))["driveway_gate_level"].samples
    assert set(told.values()) == {0}


def test_what_is_not_known_is_not_zero() -> None:
    shot = at_rest()
    status = msgspec.structs.replace(shot.status, computer=None, catalogue=None)
    told = read(openmetrics(collect(Snapshot(**{**vars(shot), "status": status}))))
    for name in ("driveway_computer_power_watts", "driveway_battery_charge_ratio", "driveway_lease_slices_done"):
        assert name not in told


def test_nothing_that_names_a_lease_a_customer_or_a_car_is_shown() -> None:
    shot = at_work()
    lease = shot.status.lease
    assert lease is not None
    text = openmetrics(collect(shot))
    for secret in (lease.job, lease.customer, lease.package, shot.status.link.broker, "ocr-2"):
        assert secret not in text


def test_numbers_are_written_as_numbers() -> None:
    family = Family("driveway_x", "gauge", "X.")
    for value in (0.1, 1e-9, 1e300, -2.5, 3, 2**60, True, float("inf"), float("-inf"), float("nan")):
        (told,) = read(openmetrics([(family, [Sample(value)])]))["driveway_x"].samples.values()
        assert told == value or value != value  # noqa: PLR0124 - NaN


def test_wrong_labels_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        openmetrics([(families.STATE, [Sample(1)])])
