"""Which message makes brokers hang up: found out without blaming the others that were on the way with it.

Brokers answer a message that they cannot stand (too large, against a rule of theirs) by closing the connection, and a
client that sends it again at each reconnect has no link any more. So: what was in flight when the broker hung up is
suspected, and a suspect travels alone. An innocent one is acknowledged then, and cleared; the guilty one is alone at
the next losses too, and at the third in a row it is quarantined: told to its owner as poison, who lets it wait long. If
it comes back, one more loss is enough.

A broker that is killed and started again and again loses messages too, and none of them is to blame. So a suspect
travels only over a connection that has been proven: that has lived for some seconds without it. What such a broker
serves in those seconds, it serves; a suspect waits until it has calmed down.
"""

from __future__ import annotations

from collections.abc import Collection

LOSSES = 3
"""Connections that end one after the other with the same message in flight, before it is called poison."""
MOST = 256
"""More suspects than these are not remembered: the oldest is forgotten."""


class Quarantine:
    """Counts by token; a token names one message for as long as it is sent again."""

    def __init__(self) -> None:
        self._losses: dict[str, int] = {}

    def admits(self, token: str, in_flight: Collection[str], *, proven: bool) -> bool:
        """Whether this message may travel now, with those (messages without a token are ''), over such a connection."""
        if any(one in self._losses for one in in_flight):
            return False
        return token not in self._losses or (proven and not in_flight)

    def suspects(self, token: str) -> bool:
        """Whether it was on its way when a broker hung up, and has not been acknowledged since."""
        return token in self._losses

    def acknowledged(self, token: str) -> None:
        """The broker took it, or refused it and lived: it is no poison."""
        self._losses.pop(token, None)

    def lost(self, in_flight: Collection[str]) -> list[str]:
        """The broker hung up over these; the tokens of those that are poison by now.

        However often a message was sent over the connection that ended, it is one loss.
        """
        poison = []
        for token in filter(None, dict.fromkeys(in_flight)):
            losses = self._losses.pop(token, 0) + 1
            if losses >= LOSSES:
                poison.append(token)
            self._losses[token] = min(losses, LOSSES - 1)
        for token in list(self._losses)[: max(0, len(self._losses) - MOST)]:
            del self._losses[token]
        return poison
