"""Faults of the car's signals, laid over its honest frames: a signal that lies or says nothing, a message never sent.

Signals are named by their VSS path, as the agent's profiles map them to the signals of a DBC; so a lie reaches the
agent through the same frame, counter and checksum as the truth. What a message cannot say (a DBC without a value for
"not available") is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cantools.database.can import Signal

from agent.core.events import SignalValue
from agent.errors import DrivewayError
from agent.vehicle.dbc import load_dbc
from agent.vehicle.profile import SignalMapping, dbc_path, load_profile
from hil.car.frames import PROFILES

Where = tuple[str, str]
"""(bus, message)"""


class Overlay:
    """What is wrong with the signals of one car."""

    def __init__(self) -> None:
        self._places = {mapping.path: (where, mapping, signal) for where, mapping, signal in _mapped()}
        self._lies: dict[Where, dict[str, float | int | str]] = {}
        self._silent: set[Where] = set()

    def lies(self, where: Where) -> dict[str, float | int | str]:
        """What this message says instead of the truth, by the names of the DBC."""
        return self._lies.get(where, {})

    def is_silent(self, where: Where) -> bool:
        """Whether this message is not sent."""
        return where in self._silent

    def lie(self, path: str, value: SignalValue) -> None:
        """Let a signal say this. Raises DrivewayError for one that the car does not have, or that cannot say it."""
        where, mapping, _ = self._place(path)
        said: float | int | str
        if mapping.values:
            names = [name for name, meant in mapping.values.items() if meant == value]
            if not names:
                raise DrivewayError(f"{path} cannot be {value!r}", hint=f"it can be {_all(mapping.values.values())}")
            said = int(names[0]) if names[0].isdigit() else names[0]
        else:
            said = float(value) / mapping.scale
        self._lies.setdefault(where, {})[mapping.signal] = said

    def stick(self, path: str, last: Mapping[str, object]) -> None:
        """Let a signal stay at what `last`, the values of its message, says; raises DrivewayError where it is not."""
        where, mapping, _ = self._place(path)
        value = last.get(mapping.signal)
        if not isinstance(value, float | int | str):
            raise DrivewayError(f"{path} is not sent by this car")
        self._lies.setdefault(where, {})[mapping.signal] = value

    def take_away(self, path: str, how: str) -> None:
        """Let a signal say nothing that may be believed; raises DrivewayError where it has no such word.

        `not_available` or `unknown`: it knows nothing; `fault`: its sensor is broken; `out_of_range`: what cannot be.
        """
        where, mapping, signal = self._place(path)
        words = {"not_available": mapping.unavailable, "unknown": mapping.unavailable, "fault": mapping.faults}
        if how == "out_of_range" and not mapping.values:
            said: float | int | str = _extreme(signal)
        elif names := words.get(how, ()):
            said = int(names[0]) if names[0].isdigit() else names[0]
        else:
            raise DrivewayError(f"{path} has no way to say {how}", hint="docs/can.md")
        self._lies.setdefault(where, {})[mapping.signal] = said

    def honest(self, path: str) -> None:
        """The signal tells the truth again."""
        where, mapping, _ = self._place(path)
        self._lies.get(where, {}).pop(mapping.signal, None)

    def hush(self, path: str, *, silent: bool) -> None:
        """The message that carries a signal is no longer sent, or is again."""
        where, _, _ = self._place(path)
        (self._silent.add if silent else self._silent.discard)(where)

    def where(self, path: str) -> Where:
        """The bus and the message of a signal."""
        return self._place(path)[0]

    def _place(self, path: str) -> tuple[Where, SignalMapping, Signal]:
        if path not in self._places:
            raise DrivewayError(f"this car does not tell {path}", hint=f"it tells {_all(self._places)}")
        return self._places[path]


def _mapped() -> Iterable[tuple[Where, SignalMapping, Signal]]:
    for profile in map(load_profile, PROFILES):
        for bus, mapping in profile.buses.items():
            database = load_dbc(dbc_path(profile, mapping.dbc))
            for message in mapping.messages:
                frame = database.get_message_by_name(message.message)
                for signal in message.signals:
                    yield (bus, message.message), signal, frame.get_signal_by_name(signal.signal)


def _extreme(signal: Signal) -> float:
    """The largest value that the bits can hold."""
    raw = 2 ** (signal.length - 1) - 1 if signal.is_signed else 2**signal.length - 1
    largest = signal.conversion.raw_to_scaled(raw, decode_choices=False)
    assert isinstance(largest, float | int)
    return float(largest)


def _all(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in names)
