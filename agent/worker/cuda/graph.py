"""A CUDA graph: what a slot does, recorded once and then launched with one call.

Between an engine's many small kernels the device waits for the computer to launch the next one; a graph is launched
whole. What is captured keeps its addresses for good, and cannot change in length. Some engines cannot be captured
(a plugin that allocates, a library that waits); the caller then does the same work call by call.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.worker.cuda.driver import Driver


class Graph:
    """A graph that can be launched any number of times, one launch at a time."""

    def __init__(self, driver: Driver, executable: int) -> None:
        self._driver = driver
        self._executable = executable

    def launch(self, stream: int) -> None:
        """Put one run on a stream; raises ExecutorError or LostError."""
        self._driver.launch_graph(self._executable, stream)

    def close(self) -> None:
        """Free it; it may not be running. May be called twice."""
        if self._executable:
            self._driver.destroy_executable(self._executable)
            self._executable = 0


def capture(driver: Driver, stream: int, work: Callable[[], None]) -> Graph:
    """Record what `work` puts on the stream, which has to have done it once for real before.

    Raises what `work` raises, and ExecutorError when something in it cannot be captured; the stream can be used then.
    """
    driver.begin_capture(stream)
    try:
        work()
        graph = driver.end_capture(stream)
    except BaseException:
        driver.abandon_capture(stream)
        raise
    try:
        return Graph(driver, driver.instantiate(graph))
    finally:
        driver.destroy_graph(graph)
