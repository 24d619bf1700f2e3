"""Computing a slice at the pace that the daemon sets: work, report, look at the socket, rest.

Pacing is sleeping: after t ms of work at a duty of d thousandths, t * (1000 - d) / d ms, asleep on the socket, so that
Stop ends it at once and a new pace counts at once. All of the time between two rests is work, whatever of it the engine
took; nothing is in flight during a rest.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from agent.wire import Progress
from agent.worker.answers import Answer
from agent.worker.channel import Channel
from agent.worker.pipeline import Pipeline

FULL = 1000
_PROGRESS_EVERY_S = 0.25
Attend = Callable[["float | None"], None]
"""Looks at the socket for so many seconds (None: until something comes); raises to stop everything."""


class Pacer:
    """Drives pipelines. `duty_permille` may change whenever `attend` is called."""

    def __init__(self, channel: Channel, attend: Attend) -> None:
        self.duty_permille = FULL
        self._channel, self._attend = channel, attend

    def compute(
        self, pipeline: Pipeline, items: Sequence[bytes], *, slice_index: int | None
    ) -> tuple[list[Answer], float]:
        """The answers in order, and the seconds that the engine worked. Progress is told of a slice with an index."""
        answers: dict[int, Answer] = {}
        engine_s = 0.0
        reported_s = -_PROGRESS_EVERY_S
        began_s = time.monotonic()
        with contextlib.closing(pipeline.steps(items, lambda: self.duty_permille == FULL)) as steps:
            for step in steps:
                answers.update(step.answers)
                for _, answer in step.answers:
                    answer.encoded  # noqa: B018 - now, while the engine works, and not when it waits for the next slice
                engine_s += step.engine_s
                now_s = time.monotonic()
                if slice_index is not None and step.answers and now_s - reported_s >= _PROGRESS_EVERY_S:
                    self._channel.send(Progress(index=slice_index, done=len(answers)))
                    reported_s = now_s
                if pipeline.idle:
                    self.rest(now_s - began_s)
                    began_s = time.monotonic()
                else:
                    self._attend(0)
                    began_s = now_s if self.duty_permille == FULL else began_s
        return [answers[place] for place in range(len(items))], engine_s

    def rest(self, busy_s: float) -> None:
        """Look at the socket, and sleep as long as the pace asks after `busy_s` seconds of work."""
        began_s = time.monotonic()
        self._attend(0)
        while self.duty_permille < FULL:
            if self.duty_permille == 0:
                self._attend(None)
                continue
            rest_s = busy_s * (FULL - self.duty_permille) / self.duty_permille
            left_s = began_s + rest_s - time.monotonic()
            if left_s <= 0:
                return
            self._attend(left_s)
