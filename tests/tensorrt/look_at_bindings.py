"""Run with real bindings: hold them against our table and use our subclasses through them; prints JSON.

Arguments: `tensorrt` or `tensorrt_rtx`, then `Class.method=arguments` for each call of ours, then any further
`Class.member` to be required for the occasion.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from agent.worker.executor import ExecutorError
from agent.worker.tensorrt import subset
from agent.worker.tensorrt.engine import open_engine
from agent.worker.tensorrt.flavour import Flavour, open_flavour
from agent.worker.tensorrt.journal import MAX_KEPT
from agent.worker.tensorrt.progress import Progress, monitor


def main() -> None:
    name, *asked = sys.argv[1:]
    extra = dict(one.split(".") for one in asked if "=" not in one)
    subset.REQUIRED = {**subset.REQUIRED, **{kind: (member,) for kind, member in extra.items()}}
    try:
        flavour = open_flavour(name)
    except ExecutorError as error:
        sys.stdout.write(json.dumps({"refused": str(error)}))
        return
    trt = flavour.trt
    said = {
        "version": flavour.version,
        "optional": [
            f"{kind}.{member}"
            for kind, members in subset.OPTIONAL.items()
            for member in members
            if hasattr(getattr(trt, kind, None), member)
        ],
        "misfits": [one for one in asked if "=" in one and not fits(trt, one)],
        "journal": journal(flavour),
        "progress": progress(trt),
        "engine": engine(flavour),
        "flags": flavour.network_flags(),
    }
    sys.stdout.write(json.dumps(said))


def fits(trt: Any, asked: str) -> bool:
    """Whether the method takes so many arguments, as its documented signatures say. What is not there at all fits."""
    name, _, arguments = asked.partition("=")
    kind, _, method = name.partition(".")
    function = getattr(getattr(trt, kind, None), method, None)
    if function is None:
        return True
    signatures = re.findall(rf"{method}\(self: [^,)]+((?:, .*)?)\) ->", function.__doc__)
    assert signatures, f"{name} does not document its arguments: {function.__doc__}"
    ranges = [parameters(text) for text in signatures if "*args" not in text]
    return any(least <= int(arguments) <= most for least, most in ranges)


def parameters(text: str) -> tuple[int, int]:
    """How many parameters a signature has without a default, and in all."""
    plain = re.sub(r"\[[^\[\]]*\]|<[^<>]*>", "", re.sub(r"\[[^\[\]]*\]|<[^<>]*>", "", text))
    parts = [part for part in plain.split(",") if ":" in part]
    return sum("=" not in part for part in parts), len(parts)


def journal(flavour: Flavour) -> list[Any]:
    """Our logger and recorder, called through the library's base classes: what comes back went through C++."""
    trt, kept = flavour.trt, flavour.journal
    kept.clear()
    quiet = kept.words("nothing")
    trt.ILogger.log(kept.logger, trt.ILogger.INFO, "of no interest")
    trt.ILogger.log(kept.logger, trt.ILogger.ERROR, "a logged\x1b[31m\nerror")
    logged = kept.words("nothing")
    recorder = kept.recorder
    for place in range(MAX_KEPT + 3):
        trt.IErrorRecorder.report_error(recorder, trt.ErrorCodeTRT.INVALID_CONFIG, f"recorded {place // 2}")
    count = trt.IErrorRecorder.num_errors(recorder)
    first = trt.IErrorRecorder.get_error_desc(recorder, 0), trt.IErrorRecorder.get_error_code(recorder, 0).name
    overflowed = trt.IErrorRecorder.has_overflowed(recorder)
    recorded, failed = kept.words("nothing"), kept.failed
    trt.IErrorRecorder.clear(recorder)
    trt.IErrorRecorder.report_error(recorder, trt.ErrorCodeTRT.FAILED_ALLOCATION, "no room")
    memory = kept.out_of_memory
    kept.clear()
    return [quiet, logged, count, *first, overflowed, recorded, failed, memory, kept.failed]


def progress(trt: Any) -> list[Any]:
    """Our progress monitor, called through its base class."""
    seen: list[Any] = []

    def attend(phase: str, done: int) -> None:
        seen.append((phase, done))
        if done >= 500:
            raise TimeoutError

    watched = Progress(attend)
    watcher = monitor(trt, watched)
    base = trt.IProgressMonitor
    base.phase_start(watcher, "outer", None, 4)
    going = [base.step_complete(watcher, "outer", step) for step in range(3)]
    base.phase_finish(watcher, "outer")
    return [seen, going, type(watched.error).__name__]


def engine(flavour: Flavour) -> str:
    try:
        open_engine(b"not a plan", flavour)
    except ExecutorError as error:
        return f"{type(error).__name__}: {error}"
    return "opened"


if __name__ == "__main__":
    main()
