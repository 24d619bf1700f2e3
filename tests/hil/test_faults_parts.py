"""The parts of a fault run: the schedule is the seed's, certificates run out, disks fill, processes are kept alive."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509

from hil.certificates import Authority
from hil.cli import parser
from hil.faults.disk import SmallDisk
from hil.faults.kinds import KINDS, Scope
from hil.faults.processes import Child
from hil.faults.schedule import possible, schedule

WAIT_S = 30.0


def test_the_same_seed_is_the_same_faults_and_another_seed_is_not() -> None:
    kinds = possible(tls=True)
    first, again, other = (
        list(itertools.islice(schedule(seed, kinds, cars=5, dispatchers=2), 200)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_every_kind_comes_about_as_often_and_hits_what_there_is() -> None:
    kinds = possible(tls=True)
    faults = list(itertools.islice(schedule(3, kinds, cars=3, dispatchers=2), 10 * len(kinds)))
    assert {kind: sum(one.kind == kind for one in faults) for kind in kinds} == dict.fromkeys(kinds, 10)
    for fault in faults:
        sizes = {Scope.CAR: 3, Scope.DISPATCHER: 2}
        assert fault.target < sizes.get(KINDS[fault.kind].scope, 1)
        least_s, most_s = KINDS[fault.kind].lasts_s
        assert least_s <= fault.lasts_s <= most_s


def test_a_broker_without_certificates_has_none_that_expire() -> None:
    assert set(possible(tls=True)) - set(possible(tls=False)) == {"certificate_expired"}


def test_a_certificate_is_renewed_in_place_with_the_same_key(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.issue("car-0000", valid_s=-1.0)
    expired = x509.load_pem_x509_certificate(Path(files.certificate).read_bytes())
    key = Path(files.key).read_bytes()
    assert authority.issue("car-0000") == files
    renewed = x509.load_pem_x509_certificate(Path(files.certificate).read_bytes())
    assert expired.not_valid_after_utc < renewed.not_valid_after_utc
    assert expired.not_valid_after_utc.timestamp() < time.time() < renewed.not_valid_after_utc.timestamp()
    assert Path(files.key).read_bytes() == key
    files.context()


def test_without_mounts_a_full_disk_is_a_limit_on_the_process_alone(tmp_path: Path) -> None:
    script = "import sys\nfor line in sys.stdin:\n try: open('f','ab',0).write(b'x'); print('ok', flush=True)\n"
    script += " except OSError as e: print(e.errno, flush=True)\n"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:

        def write() -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        disk = SmallDisk(tmp_path / "state", mounting=False)
        assert write() == "ok"
        with disk.full(process.pid):
            assert write() == str(errno.EFBIG)
            (tmp_path / "others").write_bytes(b"x")
        assert write() == "ok"
        with disk.full(None):
            assert write() == "ok", "a process that is not there has no limit"


MOUNTED = """
import errno, os, sys
from pathlib import Path
from hil.faults.disk import SmallDisk, own_namespace
assert own_namespace()
disk = SmallDisk(Path(sys.argv[1]) / "state", mounting=True)
assert disk.mounted
kept = disk.folder / "kept"
kept.write_bytes(b"earned")
with disk.full(None):
    try:
        (disk.folder / "more").write_bytes(bytes(100_000))
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    else:
        raise AssertionError("the disk is not full")
(disk.folder / "more").write_bytes(bytes(100_000))
disk.keep()
print("held")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_small_disk_is_full_and_free_again_and_nobody_else_sees_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MOUNTED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if "own_namespace" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert done.stdout == "held\n", done.stderr
    assert (tmp_path / "state" / "kept").read_bytes() == b"earned"
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def test_a_process_that_gives_up_is_told_of_and_started_again(tmp_path: Path) -> None:
    async def story() -> None:
        script = f"print('no more'); open({str(tmp_path / 'lives')!r}, 'a').write('x'); raise SystemExit(3)"
        child = Child("service", [sys.executable, "-c", script], tmp_path / "log")
        child.start()
        for _ in range(round(WAIT_S / 0.05)):
            if len(child.ended) >= 2:
                break
            await asyncio.sleep(0.05)
        await child.stop()
        assert [(end.name, end.status) for end in child.ended][:2] == [("service", 3)] * 2
        assert "no more" in child.ended[0].said
        assert (tmp_path / "lives").read_text().startswith("xx")

    asyncio.run(story())


def test_a_process_that_was_killed_stays_down_until_it_is_started_and_a_frozen_one_can_be_ended(tmp_path: Path) -> None:
    async def story() -> None:
        child = Child("service", [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log")
        child.start()
        pids = [child.pid]
        child.kill()
        await asyncio.sleep(0.2)
        pids.append(child.pid)
        child.start()
        pids.append(child.pid)
        child.freeze()
        await child.stop()
        pids.append(child.pid)
        assert [pid is None for pid in pids] == [False, True, False, True], "nobody starts it but we"
        assert pids[0] != pids[2]
        assert child.ended == []

    asyncio.run(story())


def test_the_command_line_is_understood() -> None:
    options = parser().parse_args(["faults", "--jobs", "1000", "--seed", "7", "--broker", "both", "--cars", "6"])
    assert (options.jobs, options.seed, options.broker, options.cars, options.minutes) == (1000, 7, "both", 6, 15.0)
    with pytest.raises(SystemExit):
        parser().parse_args(["faults", "--jobs", "0"])
