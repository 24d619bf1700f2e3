"""Benchmarks: what the daemon, its gate, the thermal law and the simulation achieve, as numbers.

A benchmark is a module `hil.bench.<name>` with `run()`, which returns a frozen struct of figures with units in their
names; it is imported only when it is run. To add one, add its line here.
"""

from __future__ import annotations

BENCHMARKS = {
    "vacate": "frame on the bus to no more work running",
    "idle": "what the daemon costs while the car sends 3,000 frames a second",
    "footprint": "memory, processor, wake-ups and flash wear of the agent, held to limits",
    "leases": "items a second with a verdict, publishes and CPU a lease, beside Celery",
    "pipeline": "a lease's share of the engine's throughput; time to the first slice, and until a busy worker is gone",
    "trust": "what keys, statements, commits and long logs cost, and what cheats gain",
    "sim": "simulated car-nights per minute and core",
    "thermal": "work done under the thermal law, against on/off and the ideal cap",
}
"""Every benchmark by name, and what it measures."""

PIPELINE_PACKAGES = ("ocr", "orientation", "detector", "work-2ms", "work-10ms")
"""What `pipeline` measures: the recipes by their names, and made work by how long its micro-batch takes."""
