"""What an executor finds on this computer: library, driver and device, or one sentence that says what is missing.

The daemon asks at its start and after a device was lost, in a process of its own: a driver that hangs or crashes costs
that process. The answer is also everything by which a plan is told from those of other computers.
"""

from __future__ import annotations

import os

from agent.wire import Platform, Survey, Surveyed
from agent.worker.channel import Channel
from agent.worker.cuda.opening import open_context
from agent.worker.executor import UnavailableError
from agent.worker.tensorrt.flavour import check_device, open_flavour


def survey(order: Survey, channel: Channel) -> None:
    """Send Surveyed. Raises UnavailableError, to be sent as Refused: what is missing, and what to do about it."""
    found = _onnxruntime() if order.executor == "onnxruntime" else _tensorrt(order.executor)
    channel.send(Surveyed(platform=found, needs_plan=order.executor != "onnxruntime"))


def _onnxruntime() -> Platform:
    """The processor, which needs no plans."""
    try:
        from agent.worker.onnxruntime_cpu import processor_name  # noqa: PLC0415 - where the configuration names it
        from agent.worker.onnxruntime_library import ort  # noqa: PLC0415 - as above
    except ImportError as error:
        raise UnavailableError(f"ONNX Runtime cannot be imported: {error}", hint="install the extra `cpu`") from error
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Platform(
        executor="onnxruntime",
        version=ort.__version__,
        driver="",
        compute_capability="",
        device=processor_name()[:256],
        memory_mb=memory_bytes // 1024**2,
        integrated=True,
    )


def _tensorrt(name: str) -> Platform:
    """The accelerator and what drives it. The library first: without it nothing else matters."""
    flavour = open_flavour(name)
    with open_context() as device:
        facts = device.facts
    capability = "{}.{}".format(*facts.compute_capability)
    check_device(flavour, facts.name, capability)
    return Platform(
        executor=name,
        version=flavour.version,
        driver="{}.{}".format(*facts.cuda_version),
        compute_capability=capability,
        device=facts.name[:256],
        memory_mb=facts.memory_bytes // 1024**2,
        integrated=facts.integrated,
    )
