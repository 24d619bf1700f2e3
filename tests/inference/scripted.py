"""A small program in the worker's place that speaks the real wire: it surveys, builds and loads as a test says.

Each answer is a line of Python; `order` is what it answers. What rides along (a plan, a timing cache) is really handed
over in sealed memory, in either direction: `given` is what came with the order.
"""

from __future__ import annotations

from pathlib import Path

from agent import wire
from tests.inference.test_launcher import impostor

PLATFORM = wire.Platform(
    executor="tensorrt",
    version="10.3.0.30",
    driver="12.6",
    compute_capability="8.7",
    device="Orin",
    memory_mb=30_000,
    integrated=True,
)
SURVEYED = f"say(wire.Surveyed(platform=wire.{PLATFORM!r}, needs_plan=True))"
BUILT = "built(b'a plan of ' + model(order))"
LOADED = (
    "loaded(order) if given == b'a plan of ' + model(order) else say(wire.Refused(detail='stale', stale_plan=True))"
)

PROGRAM = """
import fcntl
from pathlib import Path

decoder = wire.daemon_messages()

def say(*messages):
    channel.sendall(b"".join(map(wire.encode, messages)))

def sealed(body, seals=fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE):
    descriptor = os.memfd_create("plan", os.MFD_ALLOW_SEALING)
    os.write(descriptor, body)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor

def built(plan, timing=b"", descriptors=None):
    frame = wire.encode(wire.Built(plan_bytes=len(plan), timing_bytes=len(timing)))
    with_it = [sealed(body) for body in (plan, timing) if body] if descriptors is None else descriptors
    socket.send_fds(channel, [frame], with_it)

def model(order):
    return hashlib.sha256((Path(order.path) / "model.onnx").read_bytes()).hexdigest().encode()

def loaded(order, executor="tensorrt"):
    sha256 = hashlib.sha256((Path(order.path) / "manifest.json").read_bytes()).hexdigest()
    say(wire.Loaded(executor=executor, device="Orin", micro_batch_ms=1.0, package_sha256=sha256,
                    kernels_sha256="7" * 64, precision="tf32", batch=(4,), golden_raw_sha256="6" * 64))

def wait(kind):
    while True:
        for message in decoder.feed(channel.recv(65536) or sys.exit()):
            if isinstance(message, kind):
                return message

hello()
while True:
    data, descriptors, _, _ = socket.recv_fds(channel, 65536, 4)
    if not data:
        sys.exit()
    for order in decoder.feed(data):
        given = b"".join(os.pread(one, os.fstat(one).st_size, 0) for one in descriptors)
        if isinstance(order, wire.Survey):
            {survey}
            sys.exit()
        elif isinstance(order, wire.Build):
            {build}
            sys.exit()
        elif isinstance(order, wire.Load):
            {load}
        elif isinstance(order, wire.Stop):
            say(wire.Idle())
            sys.exit()
"""


def scripted(folder: Path, *, survey: str = SURVEYED, build: str = BUILT, load: str = LOADED) -> str:
    """Where the program is, to be started in the interpreter's place."""
    folder.mkdir(exist_ok=True)
    lines = {"{survey}": survey, "{build}": build, "{load}": load}
    program = PROGRAM
    for place, line in lines.items():
        program = program.replace(place, line)
    return impostor(folder, program)
