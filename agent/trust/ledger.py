"""The car's log as a tree that is kept, so that proofs cost a few dozen look-ups however long it grew.

RFC 9162 hashes a log as a binary tree. The hash over a full subtree never changes once its last leaf is there; these
are kept as *nodes*, addressed by level (0: a leaf's own hash) and index: node (level, index) covers the leaves from
index * 2^level on. A leaf completes one node for each trailing one-bit of its index, so a log of n leaves has less than
2n nodes. Every root and proof is made of O(log n) of them. Leaves themselves are only needed to be shown: a log whose
old leaves were dropped still proves everything about those that are there, and its own consistency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent.trust.merkle import EMPTY_ROOT, ProofError, node_hash

NodeAt = Callable[[int, int], bytes]
"""The hash of node (level, index). It is only asked for nodes of full subtrees within the log's size."""


def completed(index: int, leaf: bytes, node: NodeAt) -> Iterator[tuple[int, int, bytes]]:
    """The nodes (level, index, hash) that the leaf with hash `leaf` at `index` completes, from the leaf upwards.

    `node` is asked for those to the left of it, which are there already.
    """
    level, digest = 0, leaf
    yield level, index, digest
    while index % 2 == 1:
        digest = node_hash(node(level, index - 1), digest)
        level, index = level + 1, index // 2
        yield level, index, digest


def root(node: NodeAt, size: int) -> bytes:
    """The root of the log's first `size` leaves."""
    return EMPTY_ROOT if size == 0 else _hash(node, 0, size)


def inclusion(node: NodeAt, index: int, size: int) -> list[bytes]:
    """The inclusion proof of leaf `index` in the log's first `size` leaves; raises ProofError where there is none."""
    if not 0 <= index < size:
        raise ProofError(f"no leaf {index} in a log of {size}")
    first, last, proof = 0, size, []
    while last - first > 1:
        split = first + _split(last - first)
        if index < split:
            proof.append(_hash(node, split, last))
            last = split
        else:
            proof.append(_hash(node, first, split))
            first = split
    return proof[::-1]


def consistency(node: NodeAt, size1: int, size2: int) -> list[bytes]:
    """The proof that the log of `size2` leaves begins with its first `size1`; raises ProofError."""
    if not 0 <= size1 <= size2:
        raise ProofError(f"a log of {size2} has no beginning of {size1}")
    if size1 in (0, size2):
        return []
    first, last, proof, known = 0, size2, [], True
    while size1 != last:
        split = first + _split(last - first)
        if size1 <= split:
            proof.append(_hash(node, split, last))
            last = split
        else:
            proof.append(_hash(node, first, split))
            first, known = split, False
    if not known:
        proof.append(_hash(node, first, last))
    return proof[::-1]


def _hash(node: NodeAt, first: int, last: int) -> bytes:
    """The hash over leaves [first, last); `first` is always at a multiple of the largest subtree within."""
    count = last - first
    level = count.bit_length() - 1
    if count == 1 << level:
        return node(level, first >> level)
    split = first + _split(count)
    return node_hash(_hash(node, first, split), _hash(node, split, last))


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1
