"""A worker's control group: where it may be, on the platforms that there are; and a real one, where this one has it."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.inference import cgroup
from agent.inference.cgroup import WorkerGroup, enclose, own_group
from agent.inference.child import Cell
from agent.wire import ACCELERATOR_LIBRARIES_MB

ENFORCED = "enforced"
MOUNT = "36 25 0:31 {root} {mount} rw,nosuid - cgroup2 cgroup2 rw\n"
OTHER = "25 1 0:5 / /proc rw - proc proc rw\n"


def platform(folder: Path, *, path: str = "/", root: str = "/", mounted: bool = True, member: bool = True) -> Path:
    """What /proc/self says on a platform whose version 2 is mounted at `folder`/groups."""
    (folder / "groups").mkdir()
    proc = folder / "proc"
    proc.mkdir()
    mount = MOUNT.format(root=root, mount=folder / "groups") if mounted else ""
    (proc / "mountinfo").write_text(OTHER + mount)
    (proc / "cgroup").write_text("4:memory:/elsewhere\n" + (f"0::{path}\n" if member else ""))
    return proc


@pytest.mark.parametrize(
    ("cell", "group_mb"),
    [
        (Cell(), None),
        (Cell(accelerator=True), None),
        (Cell(memory_mb=1024), 1024),
        (Cell(memory_mb=1024, accelerator=True), 1024 + ACCELERATOR_LIBRARIES_MB),
    ],
)
def test_an_accelerators_libraries_have_memory_of_their_own(cell: Cell, group_mb: int | None) -> None:
    assert cell.group_mb == group_mb


def test_the_group_that_this_process_is_in(tmp_path: Path) -> None:
    proc = platform(tmp_path, path="/system.slice/driveway.service")
    (tmp_path / "groups/system.slice/driveway.service").mkdir(parents=True)
    assert own_group(proc) == tmp_path / "groups/system.slice/driveway.service"


def test_a_mount_that_shows_only_what_is_below_a_group(tmp_path: Path) -> None:
    proc = platform(tmp_path, path="/machine/driveway.service", root="/machine")
    (tmp_path / "groups/driveway.service").mkdir()
    assert own_group(proc) == tmp_path / "groups/driveway.service"


def test_beside_a_daemon_that_systemd_put_into_a_group_below_the_delegated_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc = platform(tmp_path, path="/driveway.service/daemon")
    delegated = tmp_path / "groups/driveway.service"
    (delegated / "daemon").mkdir(parents=True)

    def attribute(path: Path, name: str) -> bytes:
        if Path(path) != delegated or name != "user.delegate":
            raise OSError
        return b"1"

    monkeypatch.setattr(os, "getxattr", attribute)
    assert own_group(proc) == delegated


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mounted": False}, "absent: control groups of version 2 are not mounted"),
        ({"member": False}, "absent: this process is in no group of version 2"),
        ({"path": "/not/there"}, "absent: the platform delegates no group to this user"),
    ],
)
def test_a_platform_without_is_told_and_does_no_harm(tmp_path: Path, options: dict[str, bool], why: str) -> None:
    group = enclose(os.getpid(), 256, platform(tmp_path, **options))  # type: ignore[arg-type]
    assert [(one.name, one.state) for one in group.confinement] == [("cgroup", why)]
    group.kill()
    group.freeze(frozen=True)
    group.remove()


@pytest.mark.parametrize("content", ["", "garbage", "1 2 3 - cgroup2", "\n - \n"])
def test_whatever_a_platform_writes_there_does_no_harm(tmp_path: Path, content: str) -> None:
    proc = platform(tmp_path)
    (proc / "mountinfo").write_text(content)
    (confinement,) = enclose(os.getpid(), 256, proc).confinement
    assert confinement.state.startswith("absent: ")


def test_bounds_are_written_where_their_controller_is_and_told_absent_where_not(tmp_path: Path) -> None:
    (tmp_path / "pids.max").write_text("max")
    assert cgroup._bounded(tmp_path, "cgroup_tasks", "pids.max", 7).state == ENFORCED
    assert (tmp_path / "pids.max").read_text() == "7"
    absent = cgroup._bounded(tmp_path, "cgroup_memory", "memory.max", 7).state
    assert absent == "absent: the memory controller is not delegated here"
    assert cgroup._bounded(tmp_path, "cgroup_memory", "memory.max", None).state == "absent: nobody said how much"


# --- a real one -----------------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["/bin/sleep", "300"]) as process:
        yield process
        process.kill()


@pytest.fixture
def group(sleeper: subprocess.Popen[bytes]) -> Iterator[WorkerGroup]:
    made = enclose(sleeper.pid, 256)
    if made.confinement[0].state != ENFORCED:
        pytest.skip(f"cgroup: {made.confinement[0].state}")
    yield made
    made.kill()
    sleeper.wait()
    made.remove()


def directory(group: WorkerGroup) -> Path:
    assert group._directory is not None
    return group._directory


def test_it_holds_the_worker_and_none_else(group: WorkerGroup, sleeper: subprocess.Popen[bytes]) -> None:
    assert (directory(group) / "cgroup.procs").read_text().split() == [str(sleeper.pid)]
    assert {one.name for one in group.confinement} == {"cgroup", "cgroup_memory", "cgroup_tasks", "cgroup_kill"}


def test_it_is_killed_whole_and_taken_away(group: WorkerGroup, sleeper: subprocess.Popen[bytes]) -> None:
    group.kill()
    assert sleeper.wait(30) == -9
    group.remove()
    assert not directory(group).exists()


def test_it_is_killed_whole_by_a_kernel_that_can_only_freeze(
    group: WorkerGroup, sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    for name in ("cgroup.procs", "cgroup.freeze"):
        (tmp_path / name).symlink_to(directory(group) / name)
    WorkerGroup(tmp_path, ()).kill()
    assert sleeper.wait(30) == -9


def test_it_is_frozen_and_goes_on(group: WorkerGroup, sleeper: subprocess.Popen[bytes]) -> None:
    events = directory(group) / "cgroup.events"
    with events.open() as changed:
        changes = select.poll()
        changes.register(changed, select.POLLPRI)
        for frozen in (True, False):
            group.freeze(frozen=frozen)
            while f"frozen {int(frozen)}" not in events.read_text():
                assert changes.poll(30_000)
                changed.seek(0)
                changed.read()
    assert sleeper.poll() is None


def test_what_a_dead_daemon_left_is_removed(group: WorkerGroup) -> None:
    left = directory(group).parent / f"{cgroup.LEAF}0"
    left.mkdir(exist_ok=True)
    with subprocess.Popen(["/bin/sleep", "300"]) as other:
        second = enclose(other.pid, 256)
        assert not left.exists()
        assert directory(group).exists(), "one in use is not"
        second.kill()
        other.wait()
        second.remove()
