"""What may stand in a bundle. Nothing is searched for secrets: what is not known to be harmless stays out.

* A **member** of a document is taken when its name is in `MEMBERS`, and those of an event of the log when their names
  are this program's words and tell of no place. The numbers in them are taken, rounded.
* **Text** is taken word by word: a word stays when it is one that this program's own source text uses, or a short
  number, a time or a version. So sentences of the agent stay whole, and what they quote does not: names of people,
  places, hosts and files, tokens, passwords, identification numbers become a placeholder. What it cannot tell from a
  sentence of the agent's is a quotation made of nothing but the agent's own words.
* **Placeholders** are the same for the same text within one bundle, and cannot be guessed back or matched with those
  of another: they come from a digest under a key that is made anew for each and never written down.

What the caller knows to be secret (`known`) is taken out besides, wherever it stands.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import zoneinfo
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import agent
from agent.core.signals import LEAVES
from agent.log_secrets import SECRET_FIELDS, Safe

SOURCES = Path(agent.__file__).parent
_MEMBERS = """
about accelerator active_state age_ms alive at at_ms at_once attempts awake backend broker buckets building
catalogue checked_at checkpoint checks clears_at clock_behind_s clock_is_safe code computer confinement connected
connections cost_micro count counts currency deferred_until deny_number detail device die_c dispatchers dispute
done_permille drop_ins dropped dropped_lines earnings effects enabled energy_cost energy_micro_wh energy_wh epoch
error event executor exit_code expired expires_at fields file firmware folder format gate gross group hash height
held index input items items_done_in_slice job kept kernel key keyid kind latest leaf lease leases leaves ledger
level limit limits line lines link load_s load_state machine made_at manufacturer max_item_bytes max_items max_ms
meaning memory_bytes memory_mb memory_returned_ms mend micro_batch_ms minutes mode modules name net notes opened_at
outbox owner p50_ms p99_ms package packages paid_micro path pending phase pid pipeline plans_missing power_cap_w
power_w problem proof protection python quality ready reason reasons received_bytes refused refused_messages
refused_packages reset_count restart_count restarts result retry_in_s revision root sensor sent_bytes session
sha256 sign_ms signal signals signature signed_at since size slices slices_done slices_wanted snapshot source
sources started state steps sub_state system targets tasks text time_floor timestamp took_ms total total_energy_wh
tpm unit units unpaid_since until v vacate value values vendor verdict version waiting wakes watchdog why width
witnessed worker
"""
MEMBERS = frozenset(_MEMBERS.split())
"""Of status, signals, leases, ledger, keys, packages, doctor, configuration, versions, units, log and recording."""
FREE = frozenset({"counts", "dropped", "refused_messages", "refused_packages", "confinement", "steps", "fields"})
"""Members whose own members have names that are not fixed: there a name passes that is made of known words."""
PLACE = re.compile(
    r"(?i)(^|_)(lat|lon|lng|latitude|longitude|altitude|heading|position|gps|place|address|odometer)($|_)"
)
HASHES = frozenset({"hash", "keyid", "root", "sha256"})
SHOWS_SECRETS = re.compile(r"(?i)token|secret|passw|passphrase|\bpin\b|private|credential|authori[sz]ation|\bvin\b")
_DEVICES = "nvidia tesla orin thor agx jetson geforce rtx cuda x86 aarch64 linux ubuntu debian amd epyc intel"
DEVICES = frozenset(_DEVICES.split())
"""Words of computers and systems, which the source text need not have."""
_HASH = re.compile(r"[0-9a-f]{12,128}…?")
UNITS = frozenset({"°C", "%", "km/h", "V", "A", "W", "Wh"})
_JOB = re.compile(r"job-[0-9a-f]{8,32}(/\d{1,9})?")
"""As the dispatcher names jobs: what an operator needs to find the other half of a lease."""
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:\d\d)?)?|\d\d:\d\d(:\d\d)?")
_NUMBER = re.compile(r"[+-]?\d{1,5}(\.\d{1,2})?[%s]?")
_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}([.+~-]?[a-z0-9]{1,12}){0,4}")
VERSIONED = frozenset({"version", "firmware", "revision", "kernel", "python", "latest"})
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_EDGES = "\"'`()[]{}<>,;:.!?…→=|"
_JOINTS = re.compile(r"[/_:=,+@\-\[\]().'\"#]+")
DIGITS = 3
PLACEHOLDER_BYTES = 3


@cache
def vocabulary() -> frozenset[str]:
    """Every word of this program's own text, in lower case; not the names of places in its examples.

    Where the sources are not there, no text is taken.
    """
    words = set(DEVICES)
    for path in sorted(SOURCES.rglob("*.py")):
        words.update(word.lower() for word in _WORD.findall(path.read_text("utf-8")))
    places = {zone.rpartition("/")[2].lower() for zone in zoneinfo.available_timezones()}
    return frozenset(words - places)


class Allowed:
    """Takes what may be taken, and counts what may not."""

    def __init__(self, known: Iterable[str] = (), words: Iterable[str] = ()) -> None:
        self._words = vocabulary() | {word.lower() for word in words}
        self._key = os.urandom(16)
        self._safe = Safe()
        self._known = [one for one in known if len(one) >= 4]
        self.redacted: dict[str, Counter[str]] = {}
        """By document: what was left out of which member, and how often."""

    def document(self, name: str, data: Any) -> Any:
        """What may be taken of a document of JSON data."""
        return self._value(data, name, "")

    def _value(self, value: Any, document: str, member: str) -> Any:
        match value:
            case str():
                return self.text(value, document, member)
            case Mapping():
                return self._members(value, document, free=member in FREE)
            case list() | tuple():
                return [self._value(one, document, member) for one in value]
            case float():
                return round(value, DIGITS) if math.isfinite(value) else None
            case _:
                return value if value is None or isinstance(value, int) else self._out(document, member, repr(value))

    def _members(self, table: Mapping[str, Any], document: str, *, free: bool) -> dict[str, Any]:
        taken: dict[str, Any] = {}
        leaf = table.get("path", table.get("signal"))
        foreign = isinstance(leaf, str) and leaf.startswith("Vehicle.") and leaf not in LEAVES
        for name, value in table.items():
            if foreign and name in {"value", "limit"}:  # a leaf that no gate reads: a position, for all that is known
                taken[name] = self._out(document, name, repr(value))
                continue
            known = self._is_known_word(name)
            if name in MEMBERS or (free and known and not isinstance(value, Mapping)):
                taken[name] = self._value(value, document, name)
            else:
                told = name if known else self._placeholder(name)
                taken[told] = self._out(document, name if known else "a member", repr(value))
        return taken

    def _is_known_word(self, name: str) -> bool:
        words = [word for word in _JOINTS.split(name) if word]
        if SECRET_FIELDS.search(name) or PLACE.search(name):
            return False
        return bool(words) and all(word.lower() in self._words for word in words)

    def text(self, text: str, document: str, member: str = "") -> str:
        """The words of a text that may be taken, and placeholders for the others."""
        if member in HASHES and _HASH.fullmatch(text) and not self._holds_known(text):
            return text
        if (member == "path" and text in LEAVES) or text in UNITS or _JOB.fullmatch(text):
            return text
        whole = self._safe.text(text)
        for secret in self._known:
            whole = whole.replace(secret, self._placeholder(secret))
        pieces = [self._chunk(chunk, member) for chunk in whole.split()]
        out = " ".join(pieces)
        if out != " ".join(text.split()):
            self._count(document, member or "text")
        return out

    def _chunk(self, chunk: str, member: str) -> str:
        core = chunk.strip(_EDGES)
        if not core or _TIME.fullmatch(core) or _NUMBER.fullmatch(core):
            return chunk
        if member in VERSIONED and _VERSION.fullmatch(core):
            return chunk
        if core.startswith("redacted-"):
            return chunk
        if "@" not in core and (not SHOWS_SECRETS.search(core) or core.isalpha()):
            pieces = [piece for piece in _JOINTS.split(core) if piece]
            if not re.search(r"\d\.\d", core) and all(self._is_word(piece) for piece in pieces):
                return chunk
        before, _, after = chunk.partition(core)
        return f"{before}{self._placeholder(core)}{after}"

    def _is_word(self, piece: str) -> bool:
        return piece.lower() in self._words or (piece.isascii() and piece.isdigit() and len(piece) <= 3)

    def _holds_known(self, text: str) -> bool:
        return any(secret in text for secret in self._known)

    def _out(self, document: str, member: str, value: str) -> str:
        self._count(document, member)
        return self._placeholder(value)

    def _count(self, document: str, member: str) -> None:
        self.redacted.setdefault(document, Counter())[member] += 1

    def _placeholder(self, text: str) -> str:
        digest = hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=PLACEHOLDER_BYTES, key=self._key)
        return f"redacted-{digest.hexdigest()}"
