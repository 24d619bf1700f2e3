"""Merkle proofs: the public vectors, RFC 9162's definitions, and every small tree exhaustively."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.trust.merkle import (
    EMPTY_ROOT,
    ProofError,
    Tree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    tree_root,
    verify_consistency,
    verify_inclusion,
)
from tests.trust.conformance import INCLUSION, vector

LEAVES = [leaf_hash(bytes([number])) for number in range(40)]


def mth(leaves: Sequence[bytes]) -> bytes:
    """MTH as RFC 9162 section 2.1.1 writes it: recursive, where the code is incremental."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(mth(leaves[:split]), mth(leaves[split:]))


def test_public_inclusion_vectors() -> None:
    files = sorted(vector(INCLUSION).rglob("*.json"))
    verdicts = set()
    for file in files:
        case = json.loads(file.read_text())
        proof = [base64.b64decode(entry) for entry in case["proof"] or []]
        leaf, root = base64.b64decode(case["leafHash"]), base64.b64decode(case["root"])
        try:
            verify_inclusion(leaf, case["leafIdx"], case["treeSize"], proof, root)
            holds = True
        except ProofError:
            holds = False
        assert holds != case["wantErr"], file
        verdicts.add(holds)
    assert len(files) > 90
    assert verdicts == {True, False}


def test_published_root_of_eight_leaves() -> None:
    """Root and leaves as published in the test data of Certificate Transparency's reference implementation."""
    data = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    root = "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    assert tree_root([leaf_hash(bytes.fromhex(entry)) for entry in data]).hex() == root


def test_the_incremental_root_is_the_definition() -> None:
    tree = Tree()
    assert tree.root() == mth([]) == EMPTY_ROOT
    for size, leaf in enumerate(LEAVES, start=1):
        tree.append(leaf)
        assert tree.size == size
        assert tree.root() == mth(LEAVES[:size]) == tree_root(LEAVES[:size])


def test_every_inclusion_in_every_small_tree() -> None:
    for size in range(1, 20):
        leaves = LEAVES[:size]
        root = mth(leaves)
        for index in range(size):
            proof = inclusion_proof(leaves, index)
            verify_inclusion(leaves[index], index, size, proof, root)
            for other in range(size):
                if other != index:
                    refuse_inclusion(leaves[index], other, size, proof, root)
            for bent in bend(proof):
                refuse_inclusion(leaves[index], index, size, bent, root)


def test_every_consistency_between_small_trees() -> None:
    for size2 in range(20):
        root2 = mth(LEAVES[:size2])
        for size1 in range(size2 + 1):
            root1 = mth(LEAVES[:size1])
            proof = consistency_proof(LEAVES[:size2], size1)
            verify_consistency(size1, size2, root1, root2, proof)
            refuse_consistency(size1, size2, b"\xff" * 32, root2, proof)
            refuse_consistency(size2, size1 - 1, root2, root1, proof)
            if size1:
                refuse_consistency(size1, size2, root1, b"\xff" * 32, proof)
            for bent in bend(proof):
                refuse_consistency(size1, size2, root1, root2, bent)


def bend(proof: list[bytes]) -> list[list[bytes]]:
    """Proofs that differ in one place."""
    changed = [
        [*proof[:position], bytes([entry[0] ^ 1]) + entry[1:], *proof[position + 1 :]]
        for position, entry in enumerate(proof)
    ]
    shortened = [[*proof[:position], *proof[position + 1 :]] for position in range(len(proof))]
    extended = [[*proof, b"\x00" * 32], [b"\x00" * 32, *proof], [*proof, b""]]
    cut = [[*proof[:-1], proof[-1][:31]]] if proof else []
    return changed + shortened + extended + cut


def refuse_inclusion(leaf: bytes, index: int, size: int, proof: list[bytes], root: bytes) -> None:
    with pytest.raises(ProofError):
        verify_inclusion(leaf, index, size, proof, root)


def refuse_consistency(size1: int, size2: int, root1: bytes, root2: bytes, proof: list[bytes]) -> None:
    with pytest.raises(ProofError):
        verify_consistency(size1, size2, root1, root2, proof)


def test_sizes_and_indexes_that_cannot_be() -> None:
    refuse_inclusion(LEAVES[0], 0, 0, [], EMPTY_ROOT)
    refuse_inclusion(LEAVES[0], -1, 1, [], LEAVES[0])
    refuse_inclusion(b"", 0, 1, [], b"")
    refuse_consistency(0, 0, EMPTY_ROOT, LEAVES[0], [])
    refuse_consistency(0, 3, LEAVES[0], mth(LEAVES[:3]), [])
    refuse_consistency(2, 2, b"short", b"short", [])
    refuse_consistency(-1, 3, EMPTY_ROOT, mth(LEAVES[:3]), [])
    with pytest.raises(ProofError):
        inclusion_proof(LEAVES, len(LEAVES))
    with pytest.raises(ProofError):
        consistency_proof(LEAVES, len(LEAVES) + 1)


hashes = st.binary(min_size=32, max_size=32)


STRANGE = (None, "1", 1.0, True, b"1", [1], "00" * 32, b"", b"\0" * 31, [None], [1, 2, 3], [b""], ["00" * 32])
"""What a parser of somebody else's may make of a proof; the functions are called by a third party's program."""


@pytest.mark.parametrize("strange", STRANGE, ids=repr)
@pytest.mark.parametrize("place", range(5))
def test_what_is_of_no_type_of_a_proof_is_refused_as_one(place: int, strange: object) -> None:
    leaves = [leaf_hash(bytes([number])) for number in range(7)]
    root, first = tree_root(leaves), tree_root(leaves[:3])
    inclusion: list[Any] = [leaves[2], 2, 7, inclusion_proof(leaves, 2), root]
    consistency: list[Any] = [3, 7, first, root, consistency_proof(leaves, 3)]
    cases: list[tuple[Callable[..., None], list[Any]]] = [
        (verify_inclusion, inclusion),
        (verify_consistency, consistency),
    ]
    for check, honest in cases:
        check(*honest)
        with pytest.raises(ProofError):
            check(*honest[:place], strange, *honest[place + 1 :])


def test_a_proof_that_can_be_read_once_only_is_none() -> None:
    """Else what was checked for its form would be gone when it is used."""
    leaf = leaf_hash(b"only")
    with pytest.raises(ProofError):
        verify_inclusion(leaf, 0, 1, iter([leaf]), leaf)  # type: ignore[arg-type]  # on purpose


@given(hashes, st.integers(-5, 2**70), st.integers(-5, 2**70), st.lists(hashes, max_size=70), hashes)
def test_noise_is_refused(leaf: bytes, index: int, size: int, proof: list[bytes], root: bytes) -> None:
    if (size, proof, leaf) != (1, [], root):
        refuse_inclusion(leaf, index, size, proof, root)
    if not (index == size and leaf == root):
        refuse_consistency(index, size, leaf, root, proof)
