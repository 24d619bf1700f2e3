"""RFC 9162 Merkle trees: one root that commits to every entry of a log, and short proofs about it.

* an *inclusion proof* shows that a leaf is the log's n-th entry (RFC 9162 section 2.1.3),
* a *consistency proof* shows that a longer log begins with a shorter one, so nothing was rewritten (section 2.1.4).

Hashing is SHA-256 with domain separation: a leaf is H(0x00 | data), an inner node H(0x01 | left | right). The
verifiers take bytes from strangers and raise `ProofError` on anything but a proof that holds: wrong lengths, too few or
too many hashes, and sizes that cannot be are refusals, never crashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from agent.errors import TrustError

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


class ProofError(TrustError):
    """A Merkle proof that does not hold, or is none."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of a log entry."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def tree_root(leaf_hashes: Sequence[bytes]) -> bytes:
    """The Merkle tree hash MTH over leaf hashes (RFC 9162 section 2.1.1)."""
    tree = Tree()
    for leaf in leaf_hashes:
        tree.append(leaf)
    return tree.root()


class Tree:
    """A log's root that grows one leaf at a time in O(log n) memory: it keeps the roots of the full subtrees."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        self._peaks.append(leaf)
        self.size += 1
        # Each trailing zero bit of the new size completes a full subtree: two equal neighbours become one.
        for _ in range(_trailing_zeros(self.size)):
            right = self._peaks.pop()
            self._peaks.append(node_hash(self._peaks.pop(), right))

    def grown(self, leaf: bytes) -> Tree:
        """Another tree, with the hash of one more leaf; this one stays as it is."""
        tree = Tree()
        tree.size, tree._peaks = self.size, list(self._peaks)
        tree.append(leaf)
        return tree

    def root(self) -> bytes:
        """The root over all leaves so far."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = node_hash(peak, root)
        return root


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes which, with leaf `index`, lead to the root of `leaf_hashes`; raises ProofError for no such leaf."""
    if not 0 <= index < len(leaf_hashes):
        raise ProofError(f"no leaf {index} in a log of {len(leaf_hashes)}")
    if len(leaf_hashes) == 1:
        return []
    split = _split(len(leaf_hashes))
    left, right = leaf_hashes[:split], leaf_hashes[split:]
    if index < split:
        return [*inclusion_proof(left, index), tree_root(right)]
    return [*inclusion_proof(right, index - split), tree_root(left)]


def consistency_proof(leaf_hashes: Sequence[bytes], size1: int) -> list[bytes]:
    """The hashes which show that the log of `leaf_hashes` begins with its first `size1`; raises ProofError."""
    if not 0 <= size1 <= len(leaf_hashes):
        raise ProofError(f"a log of {len(leaf_hashes)} has no beginning of {size1}")
    if size1 == 0:
        return []
    return _subproof(leaf_hashes, size1, known=True)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf with hash `leaf` is entry `index` of the log of `size` entries with `root`.

    RFC 9162 section 2.1.3.2. Raises ProofError when it is not, or when the proof is malformed.
    """
    _check_form((index, size), (leaf, root), proof)
    if not 0 <= index < size:
        raise ProofError(f"no leaf {index} in a log of {size}")
    position, last, computed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofError("inclusion proof: more hashes than the tree is high")
        if position % 2 == 1 or position == last:
            computed = node_hash(sibling, computed)
            position, last = _climb_to_left_child(position, last)
        else:
            computed = node_hash(computed, sibling)
        position //= 2
        last //= 2
    if last != 0:
        raise ProofError("inclusion proof: fewer hashes than the tree is high")
    if computed != root:
        raise ProofError("inclusion proof: leads to another root")


def verify_consistency(size1: int, size2: int, root1: bytes, root2: bytes, proof: Sequence[bytes]) -> None:
    """Check that the log of `size2` entries with `root2` begins with the log of `size1` entries with `root1`.

    RFC 9162 section 2.1.4.2; the empty log is the beginning of every log. Raises ProofError.
    """
    _check_form((size1, size2), (root1, root2), proof)
    if not 0 <= size1 <= size2:
        raise ProofError(f"a log of {size2} cannot begin with one of {size1}")
    if size1 in (0, size2):
        _check_trivial(EMPTY_ROOT if size1 == 0 else root2, root1, proof)
        if size2 == 0 and root2 != EMPTY_ROOT:
            raise ProofError("consistency proof: an empty log with a root that is not the empty one")
        return
    # A first size that is a power of two is itself a node of the second tree, and the proof leaves it out.
    path = list(proof) if size1 & (size1 - 1) else [root1, *proof]
    if not path:
        raise ProofError("consistency proof: fewer hashes than the tree is high")
    zeros = _trailing_zeros(size1)
    position, last = (size1 - 1) >> zeros, (size2 - 1) >> zeros
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofError("consistency proof: more hashes than the tree is high")
        if position % 2 == 1 or position == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            position, last = _climb_to_left_child(position, last)
        else:
            second = node_hash(second, sibling)
        position //= 2
        last //= 2
    if last != 0:
        raise ProofError("consistency proof: fewer hashes than the tree is high")
    if first != root1 or second != root2:
        raise ProofError("consistency proof: leads to other roots")


def _check_trivial(expected: bytes, root1: bytes, proof: Sequence[bytes]) -> None:
    if proof:
        raise ProofError("consistency proof: more hashes than the tree is high")
    if root1 != expected:
        raise ProofError("consistency proof: leads to other roots")


def _climb_to_left_child(position: int, last: int) -> tuple[int, int]:
    """Where a right-most node has no sibling on its level, it is its own parent: climb until it is a right child."""
    while position % 2 == 0 and position != 0:
        position //= 2
        last //= 2
    return position, last


def _subproof(leaf_hashes: Sequence[bytes], size1: int, *, known: bool) -> list[bytes]:
    """SUBPROOF of RFC 9162 section 2.1.4.1; `known` while the verifier holds this subtree's root already."""
    size = len(leaf_hashes)
    if size1 == size:
        return [] if known else [tree_root(leaf_hashes)]
    split = _split(size)
    left, right = leaf_hashes[:split], leaf_hashes[split:]
    if size1 <= split:
        return [*_subproof(left, size1, known=known), tree_root(right)]
    return [*_subproof(right, size1 - split, known=False), tree_root(left)]


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _trailing_zeros(number: int) -> int:
    return (number & -number).bit_length() - 1


def _check_form(numbers: Sequence[object], hashes: Sequence[object], proof: object) -> None:
    """Whatever a stranger's parser made of a proof: whole numbers, and hashes in a list that can be read twice."""
    if any(type(number) is not int for number in numbers):  # nor True, nor 1.0
        raise ProofError("a place or size that is no whole number")
    if not isinstance(proof, list | tuple):
        raise ProofError("a proof that is no list of hashes")
    if any(not isinstance(entry, bytes) or len(entry) != HASH_BYTES for entry in (*hashes, *proof)):
        raise ProofError(f"a hash that is not {HASH_BYTES} bytes")
