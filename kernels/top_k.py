"""How top_k.cuh cuts a row into groups and shares out the work; the constants stand in both files."""

from __future__ import annotations

MAX_K = 128
GROUPS_PER_BLOCK = 8
GROUP_THREADS = 256
SELECT_THREADS = 512
