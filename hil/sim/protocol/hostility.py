"""What a hostile broker does to messages: it has every byte that ever passed, and no key.

It alters bytes, cuts, swaps the topics of two cars, takes the statement out of a hand-in or puts another's in, empties
what a car says that it holds, forges answers with a signature of its own, and sends what passed long ago again.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable

import msgspec

from hil.sim.protocol.keys import SeededSigner

REMEMBERED = 400
GARBAGE = (b"", b"{", b"[" * 9_000, b"\xff\xfe\x00", b'{"v":2}', b'{"v":1,"rid":"x"}', b"0" * 20_000)


class Hostility:
    """Bends each message with `share` as its chance."""

    def __init__(self, chance: random.Random, units: tuple[str, ...], share: float) -> None:
        self._chance, self._units, self._share = chance, units, share
        self._seen: deque[tuple[str, bytes]] = deque(maxlen=REMEMBERED)
        self._forger = SeededSigner(0, "nobody")
        self.counts: Counter[str] = Counter()
        self._ways: tuple[Callable[[str, bytes], tuple[str, bytes]], ...] = (
            self._flipped,
            self._cut,
            self._swapped,
            self._stripped,
            self._emptied,
            self._grafted,
            self._replayed,
            self._garbage,
            self._signed_by_another,
        )

    def bend(self, topic: str, body: bytes) -> tuple[str, bytes]:
        """The message as it goes on."""
        self._seen.append((topic, body))
        if self._chance.random() >= self._share:
            return topic, body
        way = self._chance.choice(self._ways)
        self.counts[way.__name__.strip("_")] += 1
        return way(topic, body)

    def replay(self) -> tuple[str, bytes] | None:
        """Something that passed before, to be sent again."""
        return self._chance.choice(self._seen) if self._seen else None

    def _flipped(self, topic: str, body: bytes) -> tuple[str, bytes]:
        if not body:
            return topic, body
        at = self._chance.randrange(len(body))
        return topic, body[:at] + bytes([body[at] ^ (1 << self._chance.randrange(8))]) + body[at + 1 :]

    def _cut(self, topic: str, body: bytes) -> tuple[str, bytes]:
        return topic, body[: self._chance.randrange(len(body) + 1)]

    def _swapped(self, topic: str, body: bytes) -> tuple[str, bytes]:
        """To or from another car."""
        parts = topic.split("/")
        if len(parts) >= 5 and parts[2] in {"u", "d"}:
            parts[-2] = self._chance.choice(self._units)
        return "/".join(parts), body

    def _stripped(self, topic: str, body: bytes) -> tuple[str, bytes]:
        return topic, self._changed(body, lambda said: said | {"statement": None, "outputs": []})

    def _emptied(self, topic: str, body: bytes) -> tuple[str, bytes]:
        return topic, self._changed(body, lambda said: said | {"have": []})

    def _grafted(self, topic: str, body: bytes) -> tuple[str, bytes]:
        """Another's statement and answers, in this message."""
        parsed = [self._parsed(one) for _, one in self._seen if b'"statement":{' in one]
        others = [one for one in parsed if one is not None]
        if not others:
            return topic, body
        other = self._chance.choice(others)
        return topic, self._changed(
            body, lambda said: said | {name: other[name] for name in ("statement", "outputs") if name in other}
        )

    def _replayed(self, topic: str, body: bytes) -> tuple[str, bytes]:
        return self._chance.choice(self._seen) if self._seen else (topic, body)

    def _garbage(self, topic: str, _body: bytes) -> tuple[str, bytes]:
        return topic, self._chance.choice(GARBAGE)

    def _signed_by_another(self, topic: str, body: bytes) -> tuple[str, bytes]:
        """The same envelope with a signature of nobody's, under the right key's name."""

        def forge(said: dict[str, object]) -> dict[str, object]:
            signatures = said.get("signatures")
            if not isinstance(signatures, list) or not signatures:
                return said
            sig = msgspec.json.decode(msgspec.json.encode(self._forger.sign(body)))
            return said | {"signatures": [dict(signatures[0]) | {"sig": sig}]}

        return topic, self._changed(body, forge)

    def _changed(self, body: bytes, change: Callable[[dict[str, object]], dict[str, object]]) -> bytes:
        said = self._parsed(body)
        return body if said is None else msgspec.json.encode(change(said))

    @staticmethod
    def _parsed(body: bytes) -> dict[str, object] | None:
        try:
            said = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return said if isinstance(said, dict) else None
