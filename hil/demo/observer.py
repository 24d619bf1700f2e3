"""Watches a rig while it runs: samples for the report, and one line (or a live panel) for whoever looks on.

Everything comes through the doors that anybody has: the daemon's control socket, the car's, and the dispatcher's book
opened read-only.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, Self

import msgspec

from agent.errors import DrivewayError
from hil.demo.screen import Screen
from hil.dispatcher.view import View
from hil.record import LeaseSpan, Moment, Sample
from hil.rig import Rig

INTERVAL_S = 0.2


class Seen(msgspec.Struct, frozen=True):
    """One look at the whole rig."""

    at_s: float
    status: dict[str, Any]
    images: int


class Observer:
    """Looks at the rig a few times a second on a thread of its own, until closed; time counts from `began_s`."""

    def __init__(self, rig: Rig, screen: Screen, total_images: int, began_s: float) -> None:
        self._rig, self._screen, self._total, self._began_s = rig, screen, total_images, began_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="observer", daemon=True)
        self._spans: dict[str, tuple[float, float]] = {}
        self.samples: list[Sample] = []
        self.moments: list[Moment] = []
        self.last: Seen | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    @property
    def now_s(self) -> float:
        """Seconds since the observation began."""
        return time.monotonic() - self._began_s

    def tell(self, who: str, what: str, *, ago_s: float = 0.0) -> None:
        """Put a mark on the time axis, where it happened, and tell whoever looks on."""
        at_s = self.now_s - ago_s
        self.moments.append(Moment(t_s=at_s, who=who, what=what))
        self._screen.tell(at_s, who, what)

    def spans(self, leases: list[dict[str, Any]]) -> list[LeaseSpan]:
        """The leases as they were seen on the time axis, with what the daemon says came of them."""
        spans = []
        for row in reversed(leases):
            lease = row["lease"]
            start_s, end_s = self._spans.get(f"{lease['job']}/{lease['epoch']}", (0.0, 0.0))
            outcome = "finished" if lease["kind"] == "result" else str(lease["why"] or lease["state"])
            spans.append(
                LeaseSpan(
                    job=lease["job"],
                    epoch=lease["epoch"],
                    start_s=start_s,
                    end_s=end_s,
                    outcome=outcome,
                    slices_done=lease["slices_done"],
                    slices_wanted=lease["slices_wanted"],
                    energy_wh=row["energy_wh"],
                    net=row["net"],
                )
            )
        return spans

    def _watch(self) -> None:
        with View(self._rig.folder / "dispatcher") as view:
            while not self._ending.wait(INTERVAL_S):
                with contextlib.suppress(DrivewayError, OSError):  # the rig is starting or ending
                    self._look(view)

    def _look(self, view: View) -> None:
        status = self._rig.status()
        if status is None:
            return
        car = self._rig.car("state")["state"]
        images = sum(job.items_done for job in view.jobs())
        now_s = self.now_s
        lease, computer, reasons = status["lease"], status["computer"] or {}, status["reasons"]
        name = "" if lease is None else f"{lease['job']}/{lease['epoch']}"
        for shown in {name, self.samples[-1].lease if self.samples else ""} - {""}:
            self._spans[shown] = (self._spans.get(shown, (now_s, now_s))[0], now_s)
        self.samples.append(
            Sample(
                t_s=now_s,
                state=status["state"],
                gate=status["gate"],
                reason=reasons[0]["code"].replace("_", " ") if reasons else "",
                die_c=computer.get("die_c"),
                power_w=computer.get("power_w"),
                power_cap_w=status["power_cap_w"],
                charge_percent=car["soc_percent"],
                pack_power_w=car["pack_power_w"],
                lease=name,
                slices_kept=status["slices"]["kept"],
                images_settled=images,
            )
        )
        self.last = Seen(now_s, status, images)
        self._screen.show(now_s, status, images, self._total)
