"""The kept tree agrees with the textbook one, and its proofs hold under the verifier that strangers use."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.trust import ledger, merkle


class Kept:
    """A log's nodes in a dictionary, as the store has them in a table."""

    def __init__(self, size: int) -> None:
        self.leaves = [merkle.leaf_hash(sha256(str(index).encode()).digest()) for index in range(size)]
        self.nodes: dict[tuple[int, int], bytes] = {}
        for index, leaf in enumerate(self.leaves):
            self.nodes.update(((level, at), digest) for level, at, digest in ledger.completed(index, leaf, self.node))

    def node(self, level: int, index: int) -> bytes:
        """As `ledger.NodeAt`."""
        return self.nodes[level, index]


LONGEST = Kept(300)


@given(size=st.integers(0, 300))
def test_a_root_is_that_of_the_textbook(size: int) -> None:
    assert ledger.root(LONGEST.node, size) == merkle.tree_root(LONGEST.leaves[:size])


@given(size=st.integers(1, 300), data=st.data())
def test_inclusion_is_the_textbooks_and_holds(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = ledger.inclusion(LONGEST.node, index, size)
    assert proof == merkle.inclusion_proof(LONGEST.leaves[:size], index)
    merkle.verify_inclusion(LONGEST.leaves[index], index, size, proof, ledger.root(LONGEST.node, size))


@given(size2=st.integers(0, 300), data=st.data())
def test_consistency_is_the_textbooks_and_holds(size2: int, data: st.DataObject) -> None:
    size1 = data.draw(st.integers(0, size2))
    proof = ledger.consistency(LONGEST.node, size1, size2)
    assert proof == merkle.consistency_proof(LONGEST.leaves[:size2], size1)
    root1, root2 = ledger.root(LONGEST.node, size1), ledger.root(LONGEST.node, size2)
    merkle.verify_consistency(size1, size2, root1, root2, proof)


def test_a_log_of_a_million_needs_few_look_ups() -> None:
    asked = []

    def node(level: int, index: int) -> bytes:
        asked.append((level, index))
        return sha256(f"{level},{index}".encode()).digest()

    ledger.consistency(node, 654_321, 999_999)
    ledger.inclusion(node, 123_456, 999_999)
    ledger.root(node, 999_999)
    assert len(asked) < 3 * 40
    assert all((index + 1) << level <= 999_999 for level, index in asked)  # full subtrees only


def test_a_log_has_less_than_two_nodes_a_leaf() -> None:
    assert len(LONGEST.nodes) < 2 * len(LONGEST.leaves)


@pytest.mark.parametrize("index", [-1, 3])
def test_there_is_no_proof_of_what_is_not_there(index: int) -> None:
    with pytest.raises(merkle.ProofError):
        ledger.inclusion(LONGEST.node, index, 3)
    with pytest.raises(merkle.ProofError):
        ledger.consistency(LONGEST.node, index + 1 if index > 0 else index, 3)
