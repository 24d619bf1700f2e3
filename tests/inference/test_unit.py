"""Workers that systemd starts: how they are met, held, tied to the daemon and given up, and what their unit adds."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent import wire
from agent.clock import SystemClock
from agent.core.events import WorkerGone, WorkerIdle, WorkerLoading, WorkerReady
from agent.errors import WorkerError
from agent.inference.errand import Errand
from agent.inference.launcher import launch
from agent.inference.unit import Sender, UnitBody, connect
from agent.package import Package
from agent.wire import Confinement, Hello, WireError
from agent.worker.sandbox.activation import UNIT, unit_measures
from tests.inference.desk import PATIENCE_S, Desk, with_one_bucket
from tests.inference.floor import DONE, LOADED, WORKER, floor
from tests.inference.scripted import BUILT, scripted
from tests.inference.test_launcher import impostor
from tests.inference.ways import ACTIVATE, Name, Way

ENFORCED = "enforced"


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Way]:
    one = Way("unit", tmp_path)
    yield one
    one.close()


def states(confinement: tuple[Confinement, ...]) -> dict[str, str]:
    return {one.name: one.state for one in confinement}


# --- a whole life ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unit", "stand-in"])
def test_a_real_worker_says_its_status_at_the_end(tmp_path: Path, name: Name) -> None:
    """And the small program that stands in for systemd's own gives it the same."""
    if name == "unit" and ACTIVATE is None:
        pytest.skip("systemd-socket-activate is not installed")
    way = Way(name, tmp_path)

    async def story() -> None:
        desk = Desk(way)
        process = desk.launch()
        assert process.pid == 0, "nobody knows it yet"
        hello = await desk.wait_for(wire.Hello)
        assert process.pid == hello.pid
        assert os.getsid(hello.pid) != os.getsid(0)
        cage = states(process.confinement)
        assert cage["dies_with_parent"] == ENFORCED
        assert "which is no unit driveway-worker@" in cage["cgroup"], "no unit is here, and that is said"
        process.stop(PATIENCE_MS)
        await desk.wait_for(wire.Idle)
        expected, detail = await desk.end()
        assert expected
        assert detail.startswith("exited with status 0 ")

    try:
        asyncio.run(story())
    finally:
        way.close()


PATIENCE_MS = int(PATIENCE_S * 1000)


def test_a_package_that_is_refused_and_a_term_from_outside_are_told_as_of_a_child(
    unit: Way, ocr_package: Package, tmp_path: Path
) -> None:
    damaged = with_one_bucket(ocr_package, tmp_path / "damaged").path
    (damaged / "characters.txt").write_text("changed")

    async def story() -> None:
        desk = Desk(unit)
        process = desk.launch(readable=[damaged])
        process.load(damaged, executor="onnxruntime", threads=1, memory_mb=2048, drain_ms=60)
        assert "SHA-256" in (await desk.wait_for(wire.Refused)).detail
        assert await desk.end() == (True, "exited with status 3")

        desk = Desk(unit)
        process = desk.launch()
        await desk.wait_for(wire.Beat)
        await asyncio.sleep(0.1)  # one that is just writing a frame cannot say another
        os.kill(process.pid, signal.SIGTERM)  # systemd stops the unit
        expected, detail = await desk.end()
        assert (expected, detail) == (False, f"exited with status {wire.EXIT_TERMINATED}")

    asyncio.run(story())


def test_what_is_required_of_its_cage_is_required_of_a_units_worker_too(unit: Way, tmp_path: Path) -> None:
    """Its command line is the unit's. A kernel that lacks a measure is played by a worker whose cage is looked at."""
    without = tmp_path / "without"
    without.write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv = ['worker', *sys.argv[5:]]\n"
        "from agent.worker.sandbox import landlock\n"
        "def refuse(*_): raise OSError(95, 'Landlock is not built into this kernel')\n"
        "landlock.shut_in = refuse\n"
        "from agent.worker.__main__ import main\nsys.exit(main())\n"
    )
    without.chmod(0o755)

    async def story() -> None:
        desk = Desk(unit)
        process = desk.launch(python=str(without), required=("dies_with_parent", "landlock_files"))
        process.survey("onnxruntime")
        refused = await desk.wait_for(wire.Refused)
        assert refused.unavailable
        assert "landlock_files (absent: Landlock is not built into this kernel)" in refused.detail
        await desk.end()

        desk = Desk(unit)
        process = desk.launch(required=("dies_with_parent",))
        process.survey("onnxruntime")
        await desk.wait_for(wire.Surveyed)
        await desk.end()

    asyncio.run(story())


def test_what_a_builder_hands_over_comes_after_what_it_brought_with_hello(
    unit: Way, tmp_path: Path, ocr_package: Package
) -> None:
    async def story() -> None:
        program = scripted(tmp_path / "builder", build=BUILT.replace("order)", "order), b'cache'"))
        errand = Errand(SystemClock(), socket_unit=unit.listen(program))
        built = await errand.build(ocr_package.path, executor="tensorrt", threads=1, memory_mb=256, timing=None)
        assert os.pread(built.plan.descriptor, 10, 0) == b"a plan of "
        assert built.timing is not None
        assert os.pread(built.timing.descriptor, 10, 0) == b"cache"
        built.close()

    asyncio.run(story())


def test_a_station_works_with_one_and_vacates_it(unit: Way, tmp_path: Path) -> None:
    """A slice, then Stop: what the core hears is what it hears of a child."""
    program = impostor(tmp_path, WORKER.replace("{on_load}", LOADED).replace("{on_run}", DONE))

    async def story() -> None:
        async with floor(tmp_path) as on:
            on.station._limits = msgspec.structs.replace(on.station._limits, socket_unit=unit.listen(program))
            ready = await on.ready()
            assert ready.pid > 0
            on.run()
            await on.kept(1)
            on.station.stop(PATIENCE_MS)
            gone = await on.heard(WorkerGone)
            assert (gone.pid, gone.expected) == (ready.pid, True)
            assert on.kinds() == [WorkerLoading, WorkerReady, WorkerIdle, WorkerGone]

    asyncio.run(story())


# --- its end --------------------------------------------------------------------------------------------------


def test_it_dies_with_the_daemon_though_it_is_stopped(unit: Way) -> None:
    """The daemon is killed while the worker can do nothing: the kernel has to end it by its lifeline."""
    path = unit.listen()
    daemon = subprocess.Popen(
        [sys.executable, "-c", _DAEMON, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    with daemon:
        assert daemon.stdout is not None
        worker = os.pidfd_open(int(daemon.stdout.readline()))
        try:
            signal.pidfd_send_signal(worker, signal.SIGSTOP)
            assert not select.select([worker], [], [], 0.2)[0]
            daemon.kill()
            daemon.wait()
            assert select.select([worker], [], [], PATIENCE_S)[0]
        finally:
            os.close(worker)


_DAEMON = """
import asyncio, sys
from pathlib import Path
from agent import wire
from agent.clock import SystemClock
from agent.inference.launcher import launch

async def main():
    def said(message):
        if isinstance(message, wire.Beat):  # it has closed its own end of the lifeline by then
            print(process.pid, flush=True)
    process = launch(SystemClock(), said, lambda *_: None, socket_unit=Path(sys.argv[1]))
    await process.gone(3600)

asyncio.run(main())
"""


@pytest.mark.parametrize("budget_ms", [0, 60])
def test_one_that_is_slow_to_start_is_given_up_at_once_and_ends_by_itself(
    unit: Way, tmp_path: Path, budget_ms: int
) -> None:
    go, pid = tmp_path / "go", tmp_path / "pid"
    story = (
        f"open({str(tmp_path / 'pid.new')!r}, 'w').write(str(os.getpid())); "
        f"os.rename({str(tmp_path / 'pid.new')!r}, {str(pid)!r})\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        "hello(); time.sleep(60)"
    )

    async def watch() -> None:
        desk = Desk(unit)
        process = desk.launch(python=impostor(tmp_path, story))
        while not pid.exists():  # noqa: ASYNC110 - a process tells it by a file
            await asyncio.sleep(0.01)
        process.stop(budget_ms)
        expected, detail = await desk.end()
        assert expected
        assert detail.startswith("was given up before it said Hello")
        assert process.is_gone
        worker = os.pidfd_open(int(pid.read_text()))
        go.touch()
        try:
            ended, _, _ = await asyncio.to_thread(select.select, [worker], [], [], PATIENCE_S)
            assert ended, "its Hello found nobody"
        finally:
            os.close(worker)

    asyncio.run(watch())


def test_one_that_ends_before_hello_is_found_in_the_journal(unit: Way, tmp_path: Path) -> None:
    async def watch() -> None:
        desk = Desk(unit)
        desk.launch(python=impostor(tmp_path, "sys.exit('no such engine')"))
        expected, detail = await desk.end()
        assert not expected
        assert detail.startswith("ended before it said Hello; the journal has its last words")
        assert "no such engine" in unit.journal

    asyncio.run(watch())


def test_one_that_floods_is_stopped_in_time(unit: Way, tmp_path: Path) -> None:
    story = "hello()\nbeat = wire.encode(wire.Beat())\nwhile True: channel.sendall(beat * 1000)"

    async def watch() -> None:
        desk = Desk(unit)
        process = desk.launch(python=impostor(tmp_path, story))
        await desk.wait_for(wire.Beat)
        process.stop(50)
        expected, detail = await desk.end()
        assert expected
        assert detail.startswith(("was killed by SIGKILL", "was killed by SIGTERM"))

    asyncio.run(watch())


# --- who it is ------------------------------------------------------------------------------------------------


class Arrival:
    """What comes with a Hello, to be changed: descriptors are this process's own until they are handed over."""

    def __init__(self) -> None:
        self.hello = Hello(pid=os.getpid(), version=wire.VERSION)
        self.sender: Sender | None = Sender(os.getpid(), os.getuid())
        self.words, write = os.pipe()
        read, self.lifeline = os.pipe()
        self.spare = [write, read]
        self.pidfd = os.pidfd_open(os.getpid())

    def meet(self) -> UnitBody:
        return UnitBody(self.hello, self.sender, [self.pidfd, self.lifeline, self.words])

    def close(self) -> None:
        for one in self.spare:
            os.close(one)


@pytest.fixture
def arrival() -> Iterator[Arrival]:
    one = Arrival()
    yield one
    one.close()


def test_one_that_is_what_it_says_is_met(arrival: Arrival) -> None:
    body = arrival.meet()
    assert (body.pid, body.status()) == (os.getpid(), None)
    body.close()
    body.close()


def test_another_user_is_not_believed(arrival: Arrival) -> None:
    arrival.sender = Sender(os.getpid(), os.getuid() + 1)
    with pytest.raises(WireError, match="runs as user"):
        arrival.meet()


def test_one_without_credentials_is_not_believed(arrival: Arrival) -> None:
    arrival.sender = None
    with pytest.raises(WireError, match="without its credentials"):
        arrival.meet()


def test_one_that_gives_a_strangers_process_id_is_not_believed(arrival: Arrival) -> None:
    arrival.hello = Hello(pid=1, version=wire.VERSION)
    with pytest.raises(WireError, match="says that it is process 1"):
        arrival.meet()


def test_one_that_sends_a_strangers_process_descriptor_is_not_believed(arrival: Arrival) -> None:
    """Else the daemon would kill whomever it names."""
    os.close(arrival.pidfd)
    arrival.pidfd = os.pidfd_open(os.getppid())
    with pytest.raises(WireError, match="is not its own"):
        arrival.meet()


def test_a_descriptor_that_is_none_of_a_process_is_not_believed(arrival: Arrival) -> None:
    os.close(arrival.pidfd)
    arrival.pidfd = os.memfd_create("no process")
    with pytest.raises(WireError, match="is not its own"):
        arrival.meet()


def test_other_descriptors_than_pipes_are_not_taken(arrival: Arrival) -> None:
    os.close(arrival.words)
    arrival.words = os.open("/dev/zero", os.O_RDONLY)
    with pytest.raises(WireError, match="no pipes"):
        arrival.meet()


@pytest.mark.parametrize(
    ("story", "complaint"),
    [
        ("channel.sendall(wire.encode(wire.Hello(pid=os.getpid(), version=wire.VERSION))); time.sleep(60)", "without"),
        (
            (
                "from agent.worker.sandbox.activation import Ties\nties = Ties()\n"
                "socket.send_fds(channel, [wire.encode(wire.Hello(pid=1, version=wire.VERSION))], ties.riding)\n"
                "time.sleep(60)"
            ),
            "it says that it is process 1, and is ",
        ),
        ("hello(); say(wire.Ending(status=5)); time.sleep(0.05); os.kill(os.getpid(), 9)", "exited with status 5"),
        ("hello(); socket.send_fds(channel, [b'\\0'], [0, 0, 0]); time.sleep(60)", "more descriptors than it may"),
    ],
)
def test_an_impostor_in_the_unit(unit: Way, tmp_path: Path, story: str, complaint: str) -> None:
    async def watch() -> None:
        desk = Desk(unit)
        desk.launch(python=impostor(tmp_path, story))
        expected, detail = await desk.end()
        assert not expected
        assert complaint in detail

    asyncio.run(watch())


def test_where_nobody_listens_there_are_no_workers(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="no worker is to be had on"):
        connect(tmp_path / "nobody.sock")


def test_a_stranger_who_listens_is_not_asked() -> None:
    if os.getuid() != 0:
        pytest.skip("only root can listen as somebody else")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folders are closed to others
    folder.chmod(0o777)
    path = folder / "stranger.sock"
    program = (
        f"import os, socket, time; os.setuid(65534); s = socket.socket(1); s.bind({str(path)!r}); s.listen(); "
        "print(flush=True); time.sleep(60)"
    )
    stranger = subprocess.Popen(["/usr/bin/python3", "-c", program], stdout=subprocess.PIPE, cwd="/")
    with stranger:
        try:
            assert stranger.stdout is not None
            assert stranger.stdout.readline()
            with pytest.raises(WorkerError, match="listens user 65534"):
                connect(path)
        finally:
            stranger.kill()
    shutil.rmtree(folder)


# --- what the unit adds ---------------------------------------------------------------------------------------


def group(folder: Path, line: str, **files: str) -> dict[str, str]:
    proc = folder / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(f"12:pids:/elsewhere\n{line}\n")
    home = folder / "sys" / line.split(":", 2)[2].lstrip("/")
    home.mkdir(parents=True)
    for name, text in files.items():
        (home / name.replace("_", ".")).write_text(text)
    return states(unit_measures(proc, (folder / "nowhere", folder / "sys")))


def test_a_unit_with_limits_is_told_as_such(tmp_path: Path) -> None:
    path = "0::/driveway.slice/driveway-worker@0-12-34.service"
    found = group(tmp_path, path, memory_max="8589934592\n", pids_max="512\n")
    assert found == dict.fromkeys(("cgroup", "cgroup_memory", "cgroup_tasks", "cgroup_kill"), ENFORCED)


def test_a_limit_that_the_unit_lacks_is_told_as_absent(tmp_path: Path) -> None:
    found = group(tmp_path, "0::/driveway.slice/driveway-worker@1.service", memory_max="max\n")
    assert found["cgroup"] == ENFORCED
    assert found["cgroup_memory"] == "absent: the unit sets no limit"
    assert found["cgroup_tasks"] == "absent: pids.max of its unit cannot be read"


def test_another_unit_is_not_the_workers(tmp_path: Path) -> None:
    found = group(tmp_path, "1:name=systemd:/system.slice/ssh.service", memory_max="1\n")
    assert found["cgroup"] == f"absent: it runs in /system.slice/ssh.service, which is no unit {UNIT}"


def test_a_network_that_the_unit_took_away_is_told_as_such(unit: Way, tmp_path: Path) -> None:
    """Where the worker may not enter a namespace itself, as in a unit with RestrictNamespaces=."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--net", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    program = tmp_path / "in-a-unit"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv = ['worker', *sys.argv[5:]]\n"
        "from agent.worker.sandbox import namespaces\n"
        "def refuse(*_): raise OSError(1, 'Operation not permitted')\n"
        "namespaces.leave_the_network = refuse\n"
        "from agent.worker.__main__ import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    apart = tmp_path / "apart"
    apart.write_text(f'#!/bin/sh\nexec {unshare} --net {program} "$@"\n')
    apart.chmod(0o755)

    async def cage(python: Path) -> dict[str, str]:
        desk = Desk(unit)
        process = desk.launch(python=str(python))
        await desk.wait_for(wire.Hello)
        found = states(process.confinement)
        process.stop(0)
        await desk.end()
        return found

    assert asyncio.run(cage(program))["own_network"] == "absent: Operation not permitted"
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.getsockopt(socket.SOL_SOCKET, 71, 8)
        except OSError:
            pytest.skip("the kernel does not number its network namespaces (before 5.14)")
    assert asyncio.run(cage(apart))["own_network"] == ENFORCED


def test_a_daemon_that_closes_leaves_no_descriptor_behind(unit: Way) -> None:
    async def story() -> None:
        desk = Desk(unit)
        process = desk.launch()
        await desk.wait_for(wire.Hello)
        process.stop(0)
        await desk.end()

    asyncio.run(story())
    before = len(list(Path("/proc/self/fd").iterdir()))
    asyncio.run(story())
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_connection_whose_launch_failed_is_closed(tmp_path: Path) -> None:
    with pytest.raises(WorkerError):
        launch(SystemClock(), print, print, socket_unit=tmp_path / "nobody.sock")
