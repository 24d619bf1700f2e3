"""The public conformance vectors: which there are, where they belong, and what happens where they are not there.

They are others' files and not part of this repository: `FOLDER` is `shared/vectors` beside the checkout, or what
DRIVEWAY_VECTORS names. A test without its vectors is skipped, and the run ends with a line that says so, since a check
that nobody misses is none; with DRIVEWAY_REQUIRE_VECTORS=1 it fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("DRIVEWAY_VECTORS") or Path(__file__).resolve().parents[3] / "shared" / "vectors")
DSSE = "dsse.json"
INCLUSION = "rfc9162-inclusion"
ECDSA_P256 = "wycheproof/ecdsa_secp256r1_sha256_test.json"
ED25519 = "wycheproof/ed25519_test.json"
ABSENT = "conformance vectors are absent"


def vector(name: str) -> Path:
    """This file or folder of vectors; without it the test that asks is skipped, or fails where it is required."""
    path = FOLDER / name
    if not path.exists():
        said = f"{ABSENT}: {name} belongs in {FOLDER}"
        if os.environ.get("DRIVEWAY_REQUIRE_VECTORS") == "1":
            pytest.fail(said, pytrace=False)
        pytest.skip(said)
    return path


def summary(skipped: Iterable[pytest.TestReport]) -> list[str]:
    """The lines for the end of a run: each reason for which a test of the vectors was skipped, once."""
    reasons = {report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)}
    return sorted(reason.removeprefix("Skipped: ") for reason in reasons if ABSENT in reason)
