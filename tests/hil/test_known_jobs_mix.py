"""A mixed input has the items of others in an order of its own, and as many as its pattern."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agent.wire import WireError, decode_input, encode_input
from hil.dispatcher.known_jobs import mix


@given(
    st.lists(st.binary(max_size=8), min_size=1, max_size=12),
    st.lists(st.lists(st.binary(max_size=8), max_size=6), max_size=4),
    st.integers(0, 2**32),
)
def test_a_mixture_has_as_many_items_and_no_others(own: list[bytes], others: list[list[bytes]], seed: int) -> None:
    mixed = mix(encode_input(own), [encode_input(one) for one in others], lambda _sha256: True, random.Random(seed))
    assert mixed is not None
    items = Counter(decode_input(mixed))
    assert items.total() == len(own)
    assert items <= Counter(own) + sum((Counter(one) for one in others), Counter())


@given(st.binary(max_size=64))
def test_rubbish_is_no_input_to_mix(body: bytes) -> None:
    try:
        mixed = mix(body, [], lambda _sha256: True)
    except WireError:
        return
    assert mixed is not None


def test_only_new_inputs_count() -> None:
    own = encode_input([b"one", b"two"])
    taken = hashlib.sha256(own).hexdigest()
    mixed = [mix(own, [], lambda sha256: sha256 != taken, random.Random(seed)) for seed in range(20)]
    assert set(mixed) <= {encode_input([b"two", b"one"]), None}
    assert mix(own, [], lambda _sha256: False) is None
