"""Builds the parts of one daemon from its configuration, and says what each is given of the others.

Nothing begins here: no thread, no socket, no file but those that the configuration names (profiles, packages, keys),
which are read, and a power limit that a crashed run left, which is put back.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent import handin
from agent.answers import Answers
from agent.awake import KeepAwakeWishes
from agent.catalogue_keeper import CatalogueKeeper, build_keeper
from agent.clock import SystemClock, boot_id
from agent.config import Config
from agent.control_server import ControlServer
from agent.core.effects import Report
from agent.core.model import Accelerator
from agent.core.state import State, initial
from agent.fleet.channel import Moved
from agent.fleet.desk import Desk
from agent.fleet.link import Link
from agent.fleet.link_config import LinkConfig
from agent.fleet.messages import WitnessMessage
from agent.fleet.orders import Orders
from agent.fleet.partials import Partials
from agent.hands import Hands
from agent.host import Host
from agent.identity import Identity, read_key
from agent.inference.accelerator import AcceleratorWatch
from agent.inference.memory_probe import FreeBytes, MemoryProbe, available_bytes, nvml_free_bytes
from agent.inference.planned import PlannedShelf
from agent.inference.plans import open_cache
from agent.inference.proof import Prover
from agent.inference.shelf import Shelf
from agent.inference.station import WorkerLimits
from agent.leaving import Part
from agent.metrics.look import Look, exporters
from agent.notary import Notary
from agent.owner import OwnerDesk
from agent.ports import CountingSource, Emit, Source
from agent.recorder import Recorder
from agent.retiring import Circumstances, Retiring, lowest_epoch_owing
from agent.rotation import Chore, KeyKeeper, SealingVouched, home_of
from agent.selftest import NOT_YET, SelfTest
from agent.store import Store, StoreThread
from agent.telemetry.limits import PowerLimits
from agent.telemetry.reader import ReaderSource
from agent.telemetry.source import build_limits, build_reader
from agent.traffic import TrafficMeter
from agent.transfers import Transfers
from agent.updates import Updates
from agent.vehicle.apart import bind_apart
from agent.vehicle.databroker import build_awakener, build_databroker
from agent.vehicle.drain import Rounds
from agent.vehicle.profile import Profile, load_profile, vehicle_of
from agent.vehicle.source import build_sources
from agent.zones import zone_named

DRAIN_MARGIN_MS = 5
"""Between the end of a drain and the kill: for the order to arrive and the process to end."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The shells of one daemon. `start` is the state that its core begins with."""

    start: State
    clock: SystemClock
    rounds: Rounds
    store: StoreThread
    shelf: Shelf
    sources: tuple[Source, ...]
    accelerator: AcceleratorWatch
    orders: Orders
    notary: Notary
    keys: KeyKeeper
    catalogue: CatalogueKeeper | None
    desk: Desk
    link: Link
    limits: PowerLimits
    awake: KeepAwakeWishes
    hands: Hands
    prover: Prover
    owner: OwnerDesk
    control: ControlServer
    recorder: Recorder
    recordings: Path

    @property
    def closing(self) -> tuple[Part, ...]:
        """What is closed before the keys are: the last of these first."""
        before = (self.orders, self.notary, self.link, self.desk)
        return (*before, self.awake, self.limits, self.hands, self.prover)

    def permit(self, *, permitted: bool) -> None:
        """Whether a process that is not the core's may be on the accelerator now, to look or to prove something."""
        self.accelerator.permit(permitted=permitted)
        self.prover.permit(permitted=permitted)


def assemble(config: Config, identity: Identity, *, emit: Emit, state: Callable[[], State]) -> Parts:
    """Every part. They emit to `emit` and look at `state()` only once they run. Raises DrivewayError."""
    clock, rounds, boot = SystemClock(), Rounds(), boot_id() or "unknown"
    profiles = [load_profile(profile) for profile in config.vehicle.profiles]
    store = StoreThread(config.path(config.state_dir) / "driveway.db")
    publisher_keys = read_key(config, config.inference.publisher_key, "inference.publisher_key")

    async def admitted_anew() -> None:
        shelf.judge_again()
        await plans.refresh()

    catalogue = build_keeper(
        config,
        store=store,
        clock=clock,
        state=state,
        pinned=identity.dispatcher_keys,
        channel=lambda: transfers.channel(),  # noqa: PLW0108 - it is made further down
        on_change=admitted_anew,
    )
    packages_dir = config.path(config.inference.packages_dir)
    if catalogue is None:
        shelf = Shelf(packages_dir, publisher_keys)
    else:
        shelf = Shelf(packages_dir, publisher_keys, catalogue.judge, catalogue.takes_new)
    plans = _plans(config, shelf, clock, emit)
    worker = worker_limits(config)
    accelerator = AcceleratorWatch(
        worker.executor,
        clock=clock,
        on_surveyed=plans.surveyed,
        python=worker.python,
        library_path=worker.library_path,
        required=worker.required,
        socket_unit=worker.socket_unit,
    )

    def note(name: str, fields: dict[str, str | int | float | bool]) -> None:
        hands.perform(Report(name=name, fields=fields))

    def witnessed(message: WitnessMessage) -> None:
        notary.witnessed(message)

    def witness_wanted() -> None:
        notary.wanted()

    limits = build_limits(config, boot, note)
    databroker = config.vehicle.databroker
    awake = KeepAwakeWishes(build_awakener(databroker, clock, config.path) if databroker else None, note)
    orders = Orders(
        store,
        clock,
        boot_id(),
        trusted=lambda: not state().wall.problem,
        cell=identity.cell,
        on_issued=(lambda _wall_ms: None) if catalogue is None else catalogue.issued,
    )
    dispatcher_keys = identity.dispatcher_keys if catalogue is None else catalogue.keys
    desk = Desk(
        unit=config.unit.id,
        cell=identity.cell,
        run=secrets.token_hex(8),
        dispatcher_keys=dispatcher_keys,
        orders=orders,
        emit=emit,
        clock=clock,
        on_witness=witnessed,
        on_witness_wanted=witness_wanted,
        gate=catalogue,
        sealing_key=b"" if identity.sealing is None else identity.sealing.announcement,
    )
    notary = Notary(
        unit=config.unit.id,
        key_epoch=identity.key.known.epoch,
        boot=boot,
        key=identity.key,
        witnesses=dispatcher_keys,
        clock=clock,
        store=store,
        send=desk.checkpoint,
        former=identity.key.known.former,
    )
    owed = Circumstances(
        clock=clock,
        is_clock_trusted=lambda: not state().wall.problem,
        owing=lambda: lowest_epoch_owing(store, notary.certificate),
    )
    keys = KeyKeeper(
        home_of(config, identity, dispatcher_keys),
        identity.key,
        notary,
        lambda epoch: store.call(Store.last_session, epoch),
        _key_chores(config, identity, desk, owed),
    )
    link = _link(config, identity, desk)
    moved = Moved()
    meter = TrafficMeter(clock, moved, link.traffic)
    partials = Partials(config.path(config.state_dir) / "transfers")
    transfers = Transfers(
        identity.web,
        partials,
        moved,
        on_end=meter.tell,
        inline=desk.inputs.get,
        sealing=None if identity.sealing is None else identity.sealing.keys,
    )
    hands = Hands(
        emit=emit,
        clock=clock,
        store=store,
        desk=desk,
        shelf=shelf,
        plans=plans,
        session=lambda: notary.session,
        unit=handin.Unit(
            id=config.unit.id,
            device_class=config.unit.device_class,
            boot=boot,
            agent_sha256=handin.agent_sha256(),
        ),
        limits=worker,
        executor=config.inference.executor,
        transfers=transfers,
        spent=lambda: state().spent,
        policy=lambda: state().policy,
        power_limits=limits,
        keep_awake=awake.want,
        accelerator_lost=accelerator.lost,
        memory=MemoryProbe(_free_bytes(config)),
    )
    owner = OwnerDesk(state=state, emit=emit, clock=clock, store=store, boot=boot_id(), policy=config.policy)
    self_test = SelfTest(
        clock=clock,
        store=store,
        begin_session=notary.begin,
        reading=lambda: state().compute,
        python=worker.python,
        socket_unit=worker.socket_unit,
    )
    judge = None if catalogue is None else catalogue.judge_release
    updates = Updates(state=state, clock=clock, store=store, judge=judge)
    sources = (*_readers(config, profiles, clock, rounds, updates), self_test, notary, keys, accelerator, meter)
    sources = sources if catalogue is None else (*sources, catalogue)
    prover = Prover(clock=clock, shelf=shelf, plans=plans, limits=worker)
    recorder, recordings = Recorder(), config.path(config.state_dir) / "recordings"
    answers = Answers(
        state=state,
        clock=clock,
        store=store,
        hands=hands,
        desk=desk,
        link=link,
        shelf=shelf,
        keys=keys,
        owner=owner,
        updates=updates,
        recorder=recorder,
        recordings=recordings,
        sources=[source for source in sources if isinstance(source, CountingSource)],
        catalogue=None if catalogue is None else catalogue.status,
        self_test=self_test,
        prover=prover,
    )
    control = ControlServer(config.path(config.control_socket), answers.answer, owner_group=config.control.owner_group)
    look = Look(status=answers.status, signals=answers.signals, guests=control.guests, clock=clock)
    return Parts(
        start=_start(config, profiles, clock, accelerator.begins()),
        clock=clock,
        rounds=rounds,
        store=store,
        shelf=shelf,
        sources=(*sources, *exporters(config.metrics, look, config.path)),
        accelerator=accelerator,
        orders=orders,
        notary=notary,
        keys=keys,
        catalogue=catalogue,
        desk=desk,
        link=link,
        limits=limits,
        awake=awake,
        hands=hands,
        prover=prover,
        owner=owner,
        control=control,
        recorder=recorder,
        recordings=recordings,
    )


def worker_limits(config: Config) -> WorkerLimits:
    """What a worker runs on and may use. Its drain leaves a part of the vacate's budget for the process to end."""
    inference, budget_ms = config.inference, config.policy.vacate_budget_ms
    return WorkerLimits(
        threads=inference.threads,
        memory_mb=inference.memory_mb,
        executor=inference.executor,
        python=inference.worker_python or sys.executable,
        library_path=inference.library_path,
        required=inference.require_confinement,
        socket_unit=config.path(inference.worker_socket) if inference.worker_socket else None,
        drain_ms=max(1, budget_ms - max(DRAIN_MARGIN_MS, budget_ms // 10)),
    )


def _key_chores(config: Config, identity: Identity, desk: Desk, owed: Circumstances) -> list[Chore]:
    """What another unit's key brings with it."""
    chores: list[Chore] = [Retiring(config.key, config.path(config.state_dir), owed)]
    if identity.sealing is not None:
        chores.insert(0, SealingVouched(identity.sealing, desk.announce_sealing_key))
    return chores


def _free_bytes(config: Config) -> FreeBytes:
    """How much memory there is for workers: the card's, where its library is configured, else the computer's."""
    computer = config.computer
    on_card = config.inference.executor != "onnxruntime" and computer.reader == "nvml"
    return nvml_free_bytes(computer.nvml_device) if on_card else available_bytes


def _plans(config: Config, shelf: Shelf, clock: SystemClock, emit: Emit) -> PlannedShelf:
    """The packages that can be run; an executor without plans needs neither their cache nor the device's secret."""
    inference = config.inference
    cache = None
    if inference.executor != "onnxruntime":
        cache = open_cache(config.path(config.state_dir), max_bytes=inference.plan_cache_mb * 1024**2)
    return PlannedShelf(shelf, cache, emit=emit, clock=clock, memory_mb=inference.memory_mb)


def _start(config: Config, profiles: list[Profile], clock: SystemClock, accelerator: Accelerator) -> State:
    """What the core knows before the first event."""
    now_ms = clock.boot_ms()
    name = f"{config.unit.id[:32]}-{now_ms}"
    zone = zone_named(config.policy.time_zone)
    return initial(
        name,
        config.policy,
        now_ms,
        vehicle=vehicle_of(profiles),
        zone=zone,
        self_test_problem=NOT_YET,
        accelerator=accelerator,
    )


def _link(config: Config, identity: Identity, desk: Desk) -> Link:
    """The connection that carries the desk's messages."""

    def undelivered(token: str, detail: str, poison: bool) -> None:  # noqa: FBT001 - Link's callback
        desk.undelivered(token, detail, poison=poison)

    fleet = config.fleet
    base = LinkConfig(
        brokers=fleet.addresses(),
        client_id="",
        filters=(),
        keepalive_s=fleet.keepalive_s,
        reconnect_max_s=fleet.reconnect_max_s,
        tls=identity.tls,
    )
    link = Link(
        desk.link_config(base),
        on_message=desk.receive,
        on_state=desk.link_changed,
        on_undelivered=undelivered,
    )
    desk.attach(link)
    return link


def _readers(
    config: Config, profiles: list[Profile], clock: SystemClock, rounds: Rounds, updates: Updates
) -> list[Source]:
    """What reads the car, the computer and its system."""
    buses, folder = config.vehicle.bus, Path(config.base)
    sources: list[Source] = [*build_sources(buses, profiles, clock, folder, bind_apart, rounds=rounds)]
    if config.vehicle.databroker is not None:
        sources.append(build_databroker(config.vehicle.databroker, clock, config.path))
    sources.append(ReaderSource(build_reader(config), config.computer.interval_ms, clock))
    sources.append(
        Host(
            clock=clock,
            update_flag=config.update_flag_path,
            update_told=updates.holds_work,
            metered=config.network.metered,
            metered_interfaces=config.network.metered_interfaces,
        )
    )
    return sources
