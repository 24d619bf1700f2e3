"""What TensorRT said: a logger and an error recorder of our own, so that its words end up in our errors.

TensorRT reports a failure by returning None or False; why, it tells the error recorder of the object in question, or
the logger where there is no such object yet. Its first complaint is mostly the cause and the later ones its echo, so
the first ones are kept. The library knows one logger in a process, so there is one journal for each flavour.

The words may hold names out of a customer's model: they are made printable and short before anybody shows them.
"""

from __future__ import annotations

from typing import Any

MAX_KEPT, MAX_CHARACTERS = 8, 400
_MAX_WORDS = 1200
_CUDA_FAILURES = ("Cuda Runtime (", "Cuda Driver (", "cudaError", "CUDA error")
"""How TensorRT words what is the accelerator's fault, and neither the plan's nor the model's."""
_NO_MEMORY = ("out of memory", "memoryallocation", "out_of_memory")
"""How CUDA's runtime and driver word it, in lower case: `out of memory`, cudaErrorMemoryAllocation,
CUDA_ERROR_OUT_OF_MEMORY."""


class Journal:
    """Everything the library said since `clear`. The library may speak from threads of its own."""

    def __init__(self, trt: Any) -> None:
        """A journal for the bindings `trt`: give `logger` to what is made, and attach `recorder` to it."""
        self._errors: list[tuple[Any, str]] = []
        self._lines: list[str] = []
        self.logger = _logger(trt, self._lines)
        self.recorder = _recorder(trt, self._errors)

    def clear(self) -> None:
        """What was said so far belongs to something else."""
        self._errors.clear()
        self._lines.clear()

    @property
    def failed(self) -> bool:
        """Whether an error was recorded: the only sign of failure of calls that return nothing."""
        return bool(self._errors)

    @property
    def out_of_memory(self) -> bool:
        """Whether memory, of the computer or of the accelerator, was not enough."""
        told = any(code.name == "FAILED_ALLOCATION" for code, _ in self._errors)
        return told or (self.accelerator_failed and any(sign in self._first.lower() for sign in _NO_MEMORY))

    @property
    def accelerator_failed(self) -> bool:
        """Whether the first complaint is about CUDA, driver or device; what follows from it may be anything."""
        return any(sign in self._first for sign in _CUDA_FAILURES)

    @property
    def _first(self) -> str:
        """The first complaint; empty where there is none."""
        said = [text for _, text in self._errors] or self._lines
        return said[0] if said else ""

    def words(self, otherwise: str) -> str:
        """The library's own words on what went wrong, the cause first; `otherwise` where it said nothing."""
        said = [text for _, text in self._errors] or self._lines
        return "; ".join(dict.fromkeys(printable(text) for text in said))[:_MAX_WORDS] or otherwise


def printable(text: str) -> str:
    """One line without anything that a terminal would obey, cut to a readable length."""
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return line if len(line) <= MAX_CHARACTERS else line[: MAX_CHARACTERS - 1] + "…"


def _logger(trt: Any, lines: list[str]) -> Any:
    """An ILogger that keeps warnings and errors. An override may not raise: the library is C++."""
    heard = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING)

    class Logger(trt.ILogger):  # type: ignore[misc]  # a class of the flavour that was imported
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in heard and len(lines) < MAX_KEPT:
                lines.append(msg)

    return Logger()


def _recorder(trt: Any, errors: list[tuple[Any, str]]) -> Any:
    """An IErrorRecorder that keeps the first errors and says that none of them has to end the process."""

    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)

        def clear(self) -> None:
            errors.clear()

        def num_errors(self) -> int:
            return len(errors)

        get_num_errors = num_errors  # the name by which the bindings look for it

        def get_error_code(self, place: int) -> Any:
            return errors[place][0]

        def get_error_desc(self, place: int) -> str:
            return errors[place][1]

        def has_overflowed(self) -> bool:
            return len(errors) == MAX_KEPT

        def report_error(self, code: Any, text: str) -> bool:
            if len(errors) < MAX_KEPT:
                errors.append((code, text))
            return False

    return Recorder()
