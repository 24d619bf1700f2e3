"""A name that the dispatcher makes cannot be told from the one that it takes after."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from hil.dispatcher.job_names import SHORTEST, name_like
from hil.submit.send import new_name


def test_names_of_our_own_making_keep_their_form() -> None:
    for job, form in (
        (f"{new_name()}-17", r"sub[0-9a-f]{12}-17"),
        ("job-0123456789ab", r"job-[0-9a-f]{12}"),
        ("job-012345678901", r"job-[0-9a-f]{12}"),
        ("photos2026-3", r"[a-z]{6}[0-9]{4}-3"),
        ("Nightly_Scan-9", r"[A-Z][a-z]{6}_[A-Z][a-z]{3}-9"),
    ):
        name = name_like(job)
        assert re.fullmatch(form, name), f"{job} became {name}"
        assert name != job


def test_names_are_drawn() -> None:
    assert len({name_like("job-0123456789ab") for _ in range(100)}) == 100


@given(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True))
def test_any_job_s_name_gives_one_that_a_job_may_have(job: str) -> None:
    name = name_like(job)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)
    assert len(job) <= len(name) <= max(len(job), SHORTEST + len(job))
