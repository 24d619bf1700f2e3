"""The names and keys of a fleet's cars, made from one seed: who drives a car and who enrols it agree on them.

For benchmarks only: whoever has the seed has every key. A cell follows from a unit's name (`hil.dispatcher.units`), and
a machine's worth of cars is a small part of one cell, so the names are chosen to fall into one: `fleet-00042-1f3`.
"""

from __future__ import annotations

import hashlib
import itertools
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key

from agent.trust.keys import FileSigner

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of P-256's group (FIPS 186-4, D.1.2.3)."""


CELL = "00"


@lru_cache(maxsize=100_000)
def unit_name(number: int) -> str:
    """The pseudonym of car `number`: the first of its names that falls into the cell."""
    names = (f"fleet-{number:05d}-{suffix:x}" for suffix in itertools.count())
    return next(name for name in names if hashlib.sha256(name.encode()).hexdigest().startswith(CELL))


def signer(seed: str, number: int) -> FileSigner:
    """The signing key of car `number`: ECDSA P-256, as a file key has it."""
    secret = int.from_bytes(hashlib.sha512(f"{seed}:{number}".encode()).digest()) % (ORDER - 1) + 1
    return FileSigner(derive_private_key(secret, SECP256R1()))
