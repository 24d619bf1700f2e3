"""The cage holds: every attack comes off without it, and each measure that should stop one stops it alone."""

from __future__ import annotations

import errno
import functools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from agent.wire import Measure
from agent.worker.sandbox import landlock
from agent.worker.sandbox.kernel import Kernel
from agent.worker.sandbox.places import Access, Place, devices
from tests.inference.attacks import ATTACKS, NEEDS
from tests.inference.caged import CALLS, NOBODY, Configuration
from tests.inference.whole_cage import lacking, need

ROOT = Path(__file__).parents[2]
ENFORCED = "enforced"
NETWORK, FILES, FILTER = "own_network", "landlock", "system_calls"
STOPPED_BY: dict[str, set[str]] = {
    "read_key": {FILES},
    "list_state": {FILES},
    "write_a_file": {FILES},
    "write_into_the_package": {FILES},
    "truncate_a_file": {FILES},
    "remove_a_file": {FILES},
    "make_a_directory": {FILES},
    "link_a_file": {FILES},
    "make_the_key_public": {FILTER},
    "change_a_time": {FILTER},
    "change_an_attribute": {FILTER},
    "leave_data_in_shared_memory": {FILES},
    "leave_data_in_system_v_memory": {FILTER},
    "use_shared_memory_of_another": {FILTER},
    "watch_the_state": {FILTER},
    "connect_by_tcp": {NETWORK, FILES, FILTER},
    "listen_by_tcp": {FILES, FILTER},
    "send_by_udp": {NETWORK, FILTER},
    "open_netlink": {FILTER},
    "connect_to_an_abstract_socket": {NETWORK, FILES, FILTER},
    "connect_to_the_control_socket": {FILTER},
    "send_from_a_pair": {FILTER},
    "fork": {FILTER},
    "spawn": {FILES, FILTER},
    "outlive_the_daemon": {FILTER},
    "become_readable": {FILTER},
    "trace": {NETWORK, FILES, FILTER},
    "read_memory": {NETWORK, FILES},
    "read_environment": {NETWORK, FILES},
    "peek_at_memory": {NETWORK, FILES, FILTER},
    "signal_it": {FILES, FILTER},
    "signal_everybody": {FILTER},  # Landlock refuses each one of them, and yet the call as a whole succeeds
    "signal_by_descriptor": {FILTER},
    "signal_by_owner": {FILTER},
    "starve": {FILTER},
    "make_idle": {FILTER},
    "pin": {FILTER},
    "limit": {FILTER},
    "make_a_namespace": {FILTER},
    "keep_a_key": {FILTER},
    "change_personality": {FILTER},
    "open_a_ring": {FILTER},
    "make_a_thread_that_a_filter_cannot_see": {FILTER},
    "make_many_threads": {NETWORK},
    "run_a_shell": {FILES, FILTER},
}
PARTS = {
    NETWORK: ("own_network", "threads"),
    FILES: ("landlock_files", "landlock_tcp", "landlock_devices", "landlock_scopes"),
    FILTER: ("system_calls",),
}
"""As what a measure is told."""
PAIRS = [(attack, measure) for attack, measures in STOPPED_BY.items() for measure in sorted(measures)]


class Outcome(msgspec.Struct, frozen=True):
    """What the cage said of itself, and what came of each attempt: empty when it came off, else the error's name."""

    told: dict[str, str]
    tried: dict[str, str]


class Scene:
    """What there is to be attacked: a state directory, sockets, and a process, all of an unprivileged user's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.owner = NOBODY if os.getuid() == 0 else os.getuid()
        changed = {"user": self.owner, "group": self.owner, "extra_groups": []} if os.getuid() == 0 else {}
        self.victim = subprocess.Popen(["/bin/sleep", "300"], env={"KEY": "secret"}, **changed)  # type: ignore[call-overload]
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(type=socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.abstract = socket.socket(socket.AF_UNIX)
        self.name = f"driveway-test-{os.getpid()}-{self.victim.pid}"
        self.abstract.bind("\0" + self.name)
        self.abstract.listen(64)

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        for one in (self.tcp, self.udp, self.abstract):
            one.close()

    def attacked(self, measures: tuple[str, ...], landlock_abi: int | None = None) -> Outcome:
        """Everything is tried by a process that is shut in with these measures."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        state, package = folder / "state", folder / "package"
        state.mkdir(mode=0o700)
        package.mkdir()
        for name in ("key", "log", "old"):
            (state / name).write_bytes(b"secret")
        (package / "manifest.json").write_bytes(b"{}")
        control, notify = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours, theirs = socket.socketpair()
        with control, notify, ours, theirs:
            control.bind(str(state / "control"))
            control.listen()
            notify.bind(str(state / "notify"))
            self._hand_over(folder)
            on = Configuration(
                measures=list(measures),
                socket=theirs.fileno(),
                readable=str(package),
                state=str(state),
                victim=self.victim.pid,
                tcp_port=self.tcp.getsockname()[1],
                udp_port=self.udp.getsockname()[1],
                abstract=self.name,
                landlock_abi=landlock_abi,
            )
            ended = subprocess.run(
                [sys.executable, "-m", "tests.inference.attacks", msgspec.json.encode(on).decode()],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        assert ended.returncode == 0, ended.stderr
        first, last = ended.stdout.splitlines()
        told, tried = json.loads(first)
        return Outcome(told, {**tried, "run_a_shell": "" if last == "came off" else last})

    def _hand_over(self, folder: Path) -> None:
        """Everything below the folder belongs to the unprivileged user."""
        if os.getuid() != 0:
            return
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, self.owner, self.owner)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        opened = Scene(Path(folder))
        opened.attacked = functools.cache(opened.attacked)  # type: ignore[method-assign]
        yield opened
        opened.close()


def test_every_attack_has_its_measure() -> None:
    assert STOPPED_BY.keys() == {attack.__name__ for attack in ATTACKS}


@pytest.mark.parametrize("attack", STOPPED_BY)
def test_without_the_cage_it_comes_off(scene: Scene, attack: str) -> None:
    """So that the refusals below are the cage's doing."""
    if error := scene.attacked(()).tried[attack]:
        lacking(f"{attack} does not come off here without the cage either: {error}")


@pytest.mark.parametrize("attack", STOPPED_BY)
def test_the_cage_stops_it(scene: Scene, attack: str) -> None:
    outcome = scene.attacked(tuple(CALLS))
    need(outcome.told)
    assert outcome.tried[attack] != ""


@pytest.mark.parametrize(("attack", "measure"), PAIRS)
def test_each_measure_stops_it_alone(scene: Scene, attack: str, measure: str) -> None:
    outcome = scene.attacked((measure,))
    need(outcome.told, *PARTS[measure])
    assert outcome.tried[attack] != ""


@pytest.mark.parametrize("need", [need.__name__ for need in NEEDS])
def test_what_a_worker_needs_is_left_to_it(scene: Scene, need: str) -> None:
    assert scene.attacked(tuple(CALLS)).tried[need] == ""


def test_everything_is_enforced_here(scene: Scene) -> None:
    """All that can be required is told, and on a kernel that has all of it, it all stands."""
    told = scene.attacked(tuple(CALLS)).told
    assert set(told) == set(get_args(Measure))
    need(told)


@pytest.mark.parametrize(
    ("measure", "absent"),
    [
        (NETWORK, {"own_network", "threads"}),
        (FILES, {"landlock_files", "landlock_tcp", "landlock_devices", "landlock_scopes"}),
        (FILTER, {"system_calls"}),
    ],
)
def test_what_a_kernel_lacks_is_told_and_the_rest_stands(scene: Scene, measure: str, absent: set[str]) -> None:
    need(scene.attacked(tuple(CALLS)).told)
    told = scene.attacked(tuple(one for one in CALLS if one != measure)).told
    assert {name for name, state in told.items() if state != ENFORCED} == absent
    assert all(told[name].startswith("absent: ") for name in absent)
    assert "Function not implemented" in told[measure if measure != FILES else "landlock_files"]


@pytest.mark.parametrize(
    ("abi", "absent", "came_off", "refused"),
    [
        (1, {"landlock_tcp", "landlock_devices", "landlock_scopes"}, {"connect_by_tcp", "truncate_a_file"}, "read_key"),
        (3, {"landlock_tcp", "landlock_devices", "landlock_scopes"}, {"connect_by_tcp"}, "truncate_a_file"),
        (4, {"landlock_devices", "landlock_scopes"}, {"signal_it"}, "connect_by_tcp"),
        (5, {"landlock_scopes"}, {"signal_it", "connect_to_an_abstract_socket"}, "listen_by_tcp"),
    ],
)
def test_an_older_landlock_does_what_it_can_and_says_what_it_cannot(
    scene: Scene, abi: int, absent: set[str], came_off: set[str], refused: str
) -> None:
    need(scene.attacked((FILES,)).told, *PARTS[FILES])
    outcome = scene.attacked((FILES,), abi)
    told = {name: state for name, state in outcome.told.items() if name.startswith("landlock") and state != ENFORCED}
    assert told.keys() == absent
    assert all(f"Landlock's ABI is {abi}, not " in state for state in told.values())
    assert {attack for attack in came_off if outcome.tried[attack] == ""} == came_off
    assert outcome.tried[refused] != ""


class BrokenKernel(Kernel):
    """Offers Landlock and takes no rule about one place; what it is asked for is noted and not done."""

    def __init__(self, broken: str, error: int) -> None:
        super().__init__()
        self.broken, self.error = broken, error
        self.granted: list[str] = []
        self.restricted = False

    def call(self, name: str, *arguments: Any) -> int:
        match name:
            case "landlock_create_ruleset":
                return 6 if arguments[0] is None else os.open("/dev/null", os.O_RDONLY)
            case "landlock_add_rule":
                place = str(Path(f"/proc/self/fd/{arguments[2]._obj.descriptor}").readlink())
                if place == self.broken:
                    raise OSError(self.error, os.strerror(self.error))
                self.granted.append(place)
            case "landlock_restrict_self":
                self.restricted = True
            case _:
                raise AssertionError(name)
        return 0


@pytest.mark.parametrize("error", [errno.EIO, errno.EPERM, errno.ESTALE, errno.EBADFD])
def test_a_place_that_cannot_be_granted_costs_nothing_but_itself(tmp_path: Path, error: int) -> None:
    """Neither one that the kernel takes no rule about, nor one that cannot be opened (its name is too long)."""
    for name in ("first", "broken", "last"):
        (tmp_path / name).mkdir()
    paths = [tmp_path / "first", tmp_path / "broken", tmp_path / ("x" * 300), tmp_path / "last"]
    kernel = BrokenKernel(str(tmp_path / "broken"), error)
    parts = landlock.shut_in(kernel, [Place(str(path), Access.READ) for path in paths])
    assert set(parts.values()) == {""}
    assert kernel.granted == [str(tmp_path / "first"), str(tmp_path / "last")]
    assert kernel.restricted


def test_an_accelerator_is_granted_without_its_displays(tmp_path: Path) -> None:
    wanted = {"nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvhost-ctrl", "nvmap", "nvgpu"}
    (tmp_path / "dri").mkdir()
    for name in {*wanted, "dri/renderD128", "dri/card0", "nvidia-modeset", "nvidia-fs0", "nvme0n1", "video0"}:
        (tmp_path / name).touch()
    assert {str(node.relative_to(tmp_path)) for node in devices(tmp_path)} == wanted | {"dri/renderD128"}


SHUT_IN = """
import ctypes, os, resource, socket, sys, threading
from pathlib import Path
from agent.worker.sandbox import confine
if "thread" in sys.argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
confine(socket.socket(fileno=int(sys.argv[1])), [])
libc, signal = ctypes.CDLL(None), ctypes.c_int()
libc.prctl(2, ctypes.byref(signal), 0, 0, 0)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(libc.prctl(3), signal.value, status["NoNewPrivs"].strip(), status["Seccomp"].strip(), status["CapEff"].strip(),
      status["CapPrm"].strip(), os.getpriority(os.PRIO_PROCESS, 0),
      Path("/proc/self/oom_score_adj").read_text().strip(), resource.getrlimit(resource.RLIMIT_CORE),
      resource.getrlimit(resource.RLIMIT_NOFILE)[1], resource.getrlimit(resource.RLIMIT_FSIZE)[1])
"""


def shut_in(*arguments: str) -> subprocess.CompletedProcess[str]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SHUT_IN, str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def test_the_process_has_nothing_left_to_lose() -> None:
    """Not dumpable, dies with its parent, no privileges, a filter, yields to all, no core, few files."""
    files = min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    expected = f"0 {int(signal.SIGKILL)} 1 2 {0:016x} {0:016x} 10 1000 (0, 0) {files} {1024**2}\n"
    ended = shut_in()
    assert (ended.stdout, ended.stderr) == (expected, "")


def test_a_process_that_has_threads_is_not_shut_in() -> None:
    """They would stay outside."""
    assert "the worker has 2 threads before it is shut in" in shut_in("thread").stderr


@pytest.mark.parametrize(("given_mb", "left_mb"), [(-1, 512), (2048, 512), (256, 256)])
def test_a_memory_limit_never_widens_the_one_it_was_started_with(given_mb: int, left_mb: int) -> None:
    program = """
import resource, sys
from agent.worker.sandbox import limit_memory
given_mb = int(sys.argv[1])
if given_mb > 0:
    resource.setrlimit(resource.RLIMIT_DATA, (given_mb * 1024**2,) * 2)
limit_memory(512)
print(resource.getrlimit(resource.RLIMIT_DATA)[0] // 1024**2)
"""
    command = [sys.executable, "-c", program, str(given_mb)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.stderr) == (f"{left_mb}\n", "")
