"""Asks the platform to stay awake, through the databroker: the one thing that the agent ever writes, off by default.

`Vehicle.Driveway.KeepAwakeUntil` is an actuator of our own overlay; whether and how a car obeys it is up to whoever
provides it there. It is set to the moment until which the work would like the platform awake (ISO 8601, UTC), again and
again while there is work; a wish that is not repeated runs out by itself, so an agent that died keeps nothing awake.
Letting go names 1970, which is past by every clock. The clock that names the moment may be wrong: the core wishes for
nothing while it cannot be trusted (`agent.core.plan`).

One connection lasts for as long as a wish is held, since it is repeated every two seconds, all night. A call that fails
ends it, and so does letting go; the next wish makes a new one.

The path is a constant, and no other code in the agent calls Actuate; a test holds both.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import grpc.aio
from kuksa.val.v2 import types_pb2, val_pb2, val_pb2_grpc

from agent.errors import VehicleError
from agent.ports import Clock
from agent.vehicle.kuksa_channel import Door, LostError, cause

KEEP_AWAKE_LEAF: Final = "Vehicle.Driveway.KeepAwakeUntil"
DEADLINE_S = 1.0
LET_GO: Final = "1970-01-01T00:00:00Z"


class KuksaAwakener:
    """An `agent.ports.Awakener` over the databroker. One wish at a time; letting go also closes the connection."""

    def __init__(self, clock: Clock, door: Door) -> None:
        self._clock, self._door = clock, door
        self._channel: grpc.aio.Channel | None = None

    async def keep_awake(self, for_ms: int) -> None:
        """Wish to be kept awake for `for_ms` from now; 0 takes the wish back. Raises VehicleError."""
        done = False
        try:
            await self._actuate(LET_GO if for_ms <= 0 else self._moment(for_ms))
            done = True
        except LostError as error:
            raise VehicleError(f"{KEEP_AWAKE_LEAF}: {error}") from error
        except grpc.aio.AioRpcError as error:
            raise VehicleError(
                f"{KEEP_AWAKE_LEAF}: {cause(error)}",
                hint="does a provider claim it, and may the token actuate it?",
            ) from error
        finally:
            if for_ms <= 0 or not done:
                await self._close()

    def _moment(self, for_ms: int) -> str:
        """So long from now as ISO 8601; raises VehicleError for a clock that is beyond every calendar."""
        try:
            until = datetime.fromtimestamp((self._clock.wall_ms() + for_ms) / 1000, UTC)
        except (OverflowError, OSError, ValueError) as error:
            raise VehicleError(f"this computer's clock shows no date: {error}", hint="set it") from error
        return until.isoformat(timespec="seconds").replace("+00:00", "Z")

    async def _actuate(self, moment: str) -> None:
        request = val_pb2.ActuateRequest(
            signal_id=types_pb2.SignalID(path=KEEP_AWAKE_LEAF), value=types_pb2.Value(string=moment)
        )
        token = self._door.metadata()
        if self._channel is None:
            self._channel = self._door.open()
        await val_pb2_grpc.VALStub(self._channel).Actuate(request, timeout=DEADLINE_S, metadata=token)

    async def _close(self) -> None:
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()
