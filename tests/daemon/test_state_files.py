"""The state folder over versions: docs/state.md names every file that is in it; what a newer agent left is met."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import structlog

from agent import schema
from agent.cli import exits
from agent.cli.client import ask
from agent.cli.doctor import state
from agent.cli.doctor.model import Result
from agent.cli.main import main
from agent.config import CatalogueConfig, Config, TrustConfig
from agent.daemon import Daemon
from agent.enrolled import retired
from agent.errors import DrivewayError, NotUnderstoodError, TrustError
from agent.fleet.channel import Cut
from agent.fleet.partials import Partials
from agent.identity import establish
from agent.inference.plans import PlanCache, open_cache
from agent.sealed import InputMemory
from agent.telemetry.limits import PowerLimits
from agent.update.health import Report, judged
from agent.update.model import Before
from agent.update.service import Unit
from hil.catalogue.command import server_of
from hil.catalogue.repository import Repository
from tests.daemon.test_shutdown import PATIENCE_S, configured
from tests.daemon.test_unit_key import Car, self_test_of
from tests.state_files import pattern, rows, unnamed, used
from tests.telemetry.gpu import Gpu, devfreq
from tests.test_identity import CODE, Office

WRITTEN_BY_OTHERS = {"update-pending", "packages/**"}
ONLY_AFTER_A_POWER_CUT = {
    *(".NAME.HEX", ".NAME.part", "plans/.NAME.HEX", "catalogue/NAME.part", "recordings/unfinished"),
    *("catalogue/unpacked/**", "succession.json", "power-limit.new"),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path / "dispatcher")
    yield office
    office.close()


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[str]:
    """Where a catalogue with a policy is."""
    repository = Repository.create(tmp_path / "operator")
    (tmp_path / "root.json").write_bytes((repository.metadata / "1.root.json").read_bytes())
    repository.put("policies/family/1.0/policy.toml", b"parked_for_s = 100.0\n")
    repository.publish()
    server = server_of(repository, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


def enrolling(config: Config, office: Office, folder: Path) -> Config:
    (folder / "dispatcher.pub").write_text(office.desk.key.public_key_pem())
    fleet = msgspec.structs.replace(
        config.fleet,
        dispatcher_key="dispatcher.pub",
        enrol_url=f"{office.web.url}/enrol",
        enrol_code=CODE,
        allow_loopback_http=True,
    )
    return msgspec.structs.replace(config, fleet=fleet)


def lives(config: Config) -> set[str]:
    """A run of the daemon that enrols, believes a catalogue, records, and takes another key; the files it had then."""

    async def run() -> set[str]:
        daemon = Daemon(config, await establish(config))
        serving = asyncio.ensure_future(daemon.run())
        car = Car(config)
        try:
            await car.until("why", lambda reasons: bool(reasons) and not self_test_of(reasons))
            await car.until("status", lambda status: bool(status["catalogue"]["checked_at"]))
            await car.ask("record")
            assert await asyncio.to_thread(main, ["keys", "rotate", *command(config), "--reason", "x"]) == exits.FINE
            return used(config.path(config.state_dir))
        finally:
            daemon.stop()
            async with asyncio.timeout(PATIENCE_S):
                await serving

    return asyncio.run(run())


def command(config: Config) -> list[str]:
    return ["--config", str(Path(config.base) / "agent.toml")]


def works(folder: Path, root: Path) -> None:
    """What a daemon leaves that had an accelerator, and that was killed in a transfer and under a power limit."""
    partials = Partials(folder / "transfers", worth_bytes=1)
    with partials.open("ab" * 32, 100, Cut()) as partial:
        partial.add(b"the beginning")
    memory = InputMemory.holding(b"a plan")
    cache: PlanCache = open_cache(folder)
    for kind in ("plan", "timing"):
        cache.write("ab" * 32, memory, kind)
    memory.close()
    Gpu(root)

    async def limited() -> None:
        limits = PowerLimits(lambda: devfreq(root), folder / "power-limit.json", "boot", lambda _name, _fields: None)
        limits.worker_here(True)
        limits.want(20.0)
        assert limits._task is not None
        await limits._task

    asyncio.run(limited())


def test_every_file_of_a_used_state_folder_is_in_the_table(tmp_path: Path, office: Office, catalogue: str) -> None:
    config = enrolling(configured(tmp_path), office, tmp_path)
    trust = TrustConfig(catalogue=CatalogueConfig(root="root.json", url=catalogue, policy="family"))
    config = msgspec.structs.replace(config, trust=trust)
    folder = config.path(config.state_dir)
    at_work = lives(config)
    works(folder, tmp_path)
    found = used(folder) | at_work
    assert unnamed(folder) == set()
    assert "driveway.db-wal" in at_work
    never = [name for name in rows() if not any(pattern(name).fullmatch(file) for file in found)]
    assert set(never) == WRITTEN_BY_OTHERS | ONLY_AFTER_A_POWER_CUT, "the table names what there is"
    (folder / "tomorrow.json").touch()
    assert unnamed(folder) == {"tomorrow.json"}


# --- what a newer agent left ------------------------------------------------------------------------------------------


def starts(config: Config) -> None:
    """One run of the daemon, ended as soon as it answers; raises what it ends with."""

    async def run() -> None:
        daemon = Daemon(config, await establish(config))
        serving = asyncio.ensure_future(daemon.run())
        try:
            while not serving.done():
                try:
                    await asyncio.to_thread(ask, config.path(config.control_socket), "why")
                    break
                except DrivewayError:
                    await asyncio.sleep(0.02)
        finally:
            daemon.stop()
            async with asyncio.timeout(PATIENCE_S):
                await serving

    asyncio.run(run())


def of_a_newer(config: Config, version: int, *statements: str) -> Path:
    """The store as a newer agent leaves it."""
    starts(config)
    path = config.path(config.state_dir) / "driveway.db"
    db = sqlite3.connect(path, isolation_level=None)
    for statement in (*statements, f"PRAGMA user_version = {version}"):
        db.execute(statement)
    db.close()
    return path


def test_a_store_of_the_future_is_told_by_doctor_and_by_the_update_programs_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path)
    assert state.store(config).result is Result.MISSING
    path = of_a_newer(config, schema.NOT_KNOWN_FROM)
    before = path.read_bytes()
    with pytest.raises(NotUnderstoodError, match="older ones must not open it"):
        starts(config)
    assert path.read_bytes() == before, "nothing was written"
    capsys.readouterr()
    assert main(["doctor", "--offline", "--json", *command(config)]) == exits.FAILED
    checks = {one["name"]: one for one in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["state.schema"]["result"] == "fail"
    assert (
        f"of version {schema.NOT_KNOWN_FROM}, and this agent knows {schema.VERSION}" in checks["state.schema"]["detail"]
    )
    assert "install the newer version" in checks["state.schema"]["mend"]
    well = {"daemon.reachable": "ok", "daemon.version": "ok"}
    report = Report(well | {"state.schema": "fail"}, {"state.schema": checks["state.schema"]["detail"]})
    health = judged(report, Unit(active="active", restarts=0), Before(failing=(), lease=""))
    assert "state.schema" in health.problem, "a release that cannot open it is not well"
    assert path.read_bytes() == before


def test_a_store_of_the_next_version_is_worked_on(tmp_path: Path) -> None:
    config = configured(tmp_path)
    path = of_a_newer(config, schema.VERSION + 1, "ALTER TABLE log ADD COLUMN tomorrow TEXT NOT NULL DEFAULT 'x'")
    starts(config)
    found = state.store(config)
    assert (found.result, found.detail) == (Result.OK, f"{path} is of version {schema.VERSION + 1}")


@pytest.mark.parametrize("content", [b"", b"no database, whatever its name says" * 100])
def test_a_store_that_is_none(tmp_path: Path, content: bytes) -> None:
    config = configured(tmp_path)
    path = config.path(config.state_dir) / "driveway.db"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert state.store(config).result is (Result.FAIL if content else Result.OK), "an empty file is a new store"


def changed(name: str, **more: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (file,) = folder.glob(name)
        said = json.loads(file.read_bytes()) | more
        file.write_text(json.dumps(said, sort_keys=True, separators=(",", ":")))

    return change


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (changed("enrolled.json", tomorrow=1), ""),
        (changed("unit-key.json", v=2), "version 2 is not understood"),
        (changed("unit-key.json", tomorrow=1), "field 'tomorrow' is unknown"),
        (changed("sealing-*.json", tomorrow=1), ""),
        (lambda folder: (folder / "succession.json").write_bytes(b"{}"), ""),
    ],
)
def test_what_a_newer_agent_left_is_read_or_refused_in_a_sentence(
    tmp_path: Path, office: Office, left: Callable[[Path], None], says: str
) -> None:
    config = enrolling(configured(tmp_path), office, tmp_path)

    async def rotated() -> None:
        daemon = Daemon(config, await establish(config))
        serving = asyncio.ensure_future(daemon.run())
        try:
            car = Car(config)
            await car.until("why", lambda reasons: bool(reasons) and not self_test_of(reasons))
            assert await asyncio.to_thread(main, ["keys", "rotate", *command(config), "--reason", "x"]) == exits.FINE
        finally:
            daemon.stop()
            await serving

    asyncio.run(rotated())
    folder = config.path(config.state_dir)
    left(folder)
    if says:
        with pytest.raises(TrustError, match=says):
            starts(config)
    else:
        starts(config)


def test_keys_to_remove_that_are_not_understood_stay_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "retired-keys.json").write_text('{"keys":[],"tomorrow":1}')
    with pytest.raises(TrustError, match="field 'tomorrow' is unknown"):
        retired(tmp_path)
