"""`driveway-hil acl-probe HOST:PORT …`: runs the known attacks of a hostile car against a broker; any that works fails.

It needs two cars' certificates (one plays the attacker, the other the victim) and a dispatcher's, from the broker's own
CA, and a broker that nobody else uses at the time: a staging one, or a new one before it goes to work. Nothing it sends
is retained, and all of it carries a mark of its own, so it disturbs nothing that is left there.

What a SUBACK says proves nothing (Mosquitto with `acl_file` grants what it then drops), so each attack is judged by
what arrives where. First it checks that a car can do what it should: a broker that lets nobody do anything stops every
attack, and serves nobody.
"""

from __future__ import annotations

import enum
import secrets
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.x509.oid import NameOID

from agent.errors import ConfigError
from agent.fleet.link import TlsFiles
from hil.acl.visitor import PATIENCE_S, Visitor
from hil.faults.certificates import Authority

MESSAGES = 20
SETTLE_S = 0.3
"""After a subscription, before it counts; and after the last message, before nothing more is waited for."""


class Outcome(enum.StrEnum):
    """What became of an attack."""

    STOPPED = "stopped"
    WORKED = "worked"


class Finding(msgspec.Struct, frozen=True):
    """One attack, or the control (`control`), which has to work."""

    attack: str
    outcome: Outcome
    detail: str
    control: bool = False

    @property
    def held(self) -> bool:
        """As it should be."""
        return (self.outcome is Outcome.WORKED) is self.control


class Report(msgspec.Struct, frozen=True):
    """All of them; `held` when every attack was stopped and the control worked."""

    broker: str
    held: bool
    findings: tuple[Finding, ...]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The broker, and who may talk to it. Without certificates (`None`) it is spoken to in plain text."""

    host: str
    port: int
    car: str
    victim: str
    dispatcher: str
    cell: str = "00"
    share_group: str = "dispatch"
    tls: tuple[TlsFiles, TlsFiles, TlsFiles] | None = None
    """Of the car, the victim and the dispatcher."""

    def up(self, unit: str, verb: str) -> str:
        """A topic of what a car sends."""
        return f"dw/v1/u/{self.cell}/{unit}/{verb}"

    def visit(
        self,
        name: str,
        tls: TlsFiles | None = None,
        *,
        will: tuple[str, bytes] | None = None,
        old_protocol: bool = False,
    ) -> Visitor:
        """A client with the certificate of `name`, unless another is given."""
        if tls is None and self.tls is not None:
            tls = self.tls[(self.car, self.victim, self.dispatcher).index(name)]
        return Visitor(self.host, self.port, name, tls, will=will, old_protocol=old_protocol)


def target_from_files(
    address: tuple[str, int], ca: Path, pairs: tuple[str, str, str], *, cell: str, share_group: str
) -> Target:
    """The target, from `CERTIFICATE:KEY` of car, victim and dispatcher; raises ConfigError for a file that is none."""
    files = tuple(_files(ca, pair) for pair in pairs)
    names = [_common_name(Path(one.certificate)) for one in files]
    if len(set(names)) != len(names):
        raise ConfigError(f"the certificates name {', '.join(names)}", hint="two different cars and a dispatcher")
    return Target(
        host=address[0],
        port=address[1],
        car=names[0],
        victim=names[1],
        dispatcher=names[2],
        cell=cell,
        share_group=share_group,
        tls=(files[0], files[1], files[2]),
    )


def probe(target: Target) -> Report:
    """Every attack, one after the other."""
    control = may_do_its_own(target)
    findings = [control]
    for attack in ATTACKS if control.held else ():
        findings += attack(target)
    held = all(one.held for one in findings)
    return Report(f"{target.host}:{target.port}", held, tuple(findings))


# --- what must work -----------------------------------------------------------------------------------------------


def may_do_its_own(target: Target) -> Finding:
    """A car is heard by the dispatcher, and hears it."""
    with ExitStack() as stack:
        dispatcher, car = _dispatcher(stack, target), stack.enter_context(target.visit(target.car))
        if not (dispatcher.connected and car.connected):
            return Finding("control", Outcome.STOPPED, dispatcher.refusal or car.refusal, control=True)
        car.subscribe(f"dw/v1/d/{target.car}/+", f"dw/v1/b/{target.cell}/pace")
        up, down = _mark(), _mark()
        car.publish(target.up(target.car, "request"), up)
        dispatcher.publish(f"dw/v1/d/{target.car}/grant", down)
        heard = dispatcher.hears(up), car.hears(down)
        if not all(heard):
            who = "the dispatcher does not hear the car" if not heard[0] else "the car does not hear the dispatcher"
            return Finding("control", Outcome.STOPPED, who, control=True)
    return Finding("control", Outcome.WORKED, "a car and the dispatcher hear each other", control=True)


# --- attacks ------------------------------------------------------------------------------------------------------


def comes_without_certificate(target: Target) -> Iterator[Finding]:
    """No certificate; one of somebody else's CA."""
    if target.tls is None:
        yield Finding("no certificate", Outcome.WORKED, "the broker speaks plain text, and asks for none")
        return
    real = target.tls[0]
    bare = ssl.create_default_context(cafile=real.ca)
    yield _admitted("no certificate", Visitor(target.host, target.port, target.car, bare))
    with tempfile.TemporaryDirectory() as folder:
        foreign = Authority(Path(folder)).issue(target.victim)
        mixed = TlsFiles(ca=real.ca, certificate=foreign.certificate, key=foreign.key)
        yield _admitted("certificate of a foreign CA", Visitor(target.host, target.port, target.victim, mixed))


def takes_anothers_client_id(target: Target) -> Iterator[Finding]:
    """With its own certificate, under the victim's client id: the victim's session ends, or is inherited."""
    name = "another car's client id"
    with target.visit(target.victim) as victim:
        own = None if target.tls is None else target.tls[0]
        with target.visit(target.victim, own) as attacker:
            time.sleep(SETTLE_S)
            if not victim.connected:
                yield Finding(name, Outcome.WORKED, f"{target.victim} was thrown out by {target.car}")
                return
            said = "was not admitted" if not attacker.connected else "was given its own session"
            yield Finding(name, Outcome.STOPPED, f"{target.car} {said}")


def joins_the_dispatchers(target: Target) -> Iterator[Finding]:
    """In the share group, a car swallows its part of what others hand in, whether or not it gets to see it."""
    with ExitStack() as stack:
        dispatcher, victim = _dispatcher(stack, target), stack.enter_context(target.visit(target.victim))
        attacker = stack.enter_context(target.visit(target.car))
        attacker.subscribe(f"$share/{target.share_group}/dw/v1/u/+/+/+")
        marks = [_mark() for _ in range(MESSAGES)]
        for mark in marks:
            victim.publish(target.up(target.victim, "result"), mark)
        dispatcher.hears(marks[-1])
        time.sleep(SETTLE_S)
        arrived = sum(mark in dispatcher.heard for mark in marks)
        outcome = Outcome.STOPPED if arrived == MESSAGES else Outcome.WORKED
        yield Finding("joining the share group", outcome, f"{arrived} of {MESSAGES} reach the dispatcher")


def listens_to_others(target: Target) -> Iterator[Finding]:
    """Filters that are not its own."""
    filters = ("#", "dw/v1/#", f"dw/v1/d/{target.victim}/+", "dw/v1/d/+/+", target.up(target.victim, "+"), "+/+/u/#")
    for old in (False, True):
        for topic_filter in filters if not old else filters[:1]:
            name = f"listening to {topic_filter}" + (" with MQTT 3.1.1" if old else "")
            yield _overheard(target, name, topic_filter, old=old)


def _overheard(target: Target, name: str, topic_filter: str, *, old: bool) -> Finding:
    with ExitStack() as stack:
        dispatcher, victim = _dispatcher(stack, target), stack.enter_context(target.visit(target.victim))
        attacker = stack.enter_context(target.visit(target.car, old_protocol=old))
        attacker.subscribe(topic_filter)
        victim.subscribe(f"dw/v1/d/{target.victim}/+", f"dw/v1/b/{target.cell}/pace")
        up, down = _mark(), _mark()
        victim.publish(target.up(target.victim, "result"), up)
        dispatcher.publish(f"dw/v1/d/{target.victim}/grant", down)
        dispatcher.hears(up)
        victim.hears(down)
        time.sleep(SETTLE_S)
        admitted = attacker.connected
        caught = [what for what, mark in (("a result", up), ("a grant", down)) if mark in attacker.heard]
    if caught:
        return Finding(name, Outcome.WORKED, f"hears {' and '.join(caught)} of {target.victim}")
    return Finding(name, Outcome.STOPPED, "hears nothing" if admitted else "is not admitted")


def speaks_for_others(target: Target) -> Iterator[Finding]:
    """Topics that are not its own to publish to, the will among them."""
    with ExitStack() as stack:
        dispatcher, victim = _dispatcher(stack, target), stack.enter_context(target.visit(target.victim))
        victim.subscribe(f"dw/v1/d/{target.victim}/+", f"dw/v1/b/{target.cell}/pace")
        for name, topic, listener in (
            ("a result in another's name", target.up(target.victim, "result"), dispatcher),
            ("a grant to another", f"dw/v1/d/{target.victim}/grant", victim),
            ("the cell's pace", f"dw/v1/b/{target.cell}/pace", victim),
        ):
            with target.visit(target.car) as attacker:
                mark = _mark()
                attacker.publish(topic, mark)
                yield _reached(name, listener, mark)
        mark = _mark()
        attacker = target.visit(target.car, will=(target.up(target.victim, "status"), mark))
        with attacker:
            attacker.vanish()
        yield _reached("a will in another's name", dispatcher, mark)


ATTACKS: tuple[Callable[[Target], Iterator[Finding]], ...] = (
    comes_without_certificate,
    takes_anothers_client_id,
    joins_the_dispatchers,
    listens_to_others,
    speaks_for_others,
)


def _dispatcher(stack: ExitStack, target: Target) -> Visitor:
    dispatcher = stack.enter_context(target.visit(target.dispatcher))
    dispatcher.subscribe(f"$share/{target.share_group}/dw/v1/u/+/+/+")
    time.sleep(SETTLE_S)
    return dispatcher


def _admitted(name: str, visitor: Visitor) -> Finding:
    with visitor:
        if visitor.connected:
            return Finding(name, Outcome.WORKED, "admitted")
    return Finding(name, Outcome.STOPPED, visitor.refusal)


def _reached(name: str, listener: Visitor, mark: bytes) -> Finding:
    if listener.hears(mark, patience_s=2 * SETTLE_S):
        return Finding(name, Outcome.WORKED, f"{listener.name} hears it")
    return Finding(name, Outcome.STOPPED, "nobody hears it")


def _mark() -> bytes:
    return b"acl-probe " + secrets.token_hex(8).encode("ascii")


def _files(ca: Path, pair: str) -> TlsFiles:
    certificate, colon, key = pair.partition(":")
    if not colon:
        raise ConfigError(f"{pair!r} is not CERTIFICATE:KEY", hint="two PEM files, with a colon between them")
    for path in (ca, Path(certificate), Path(key)):
        if not path.is_file():
            raise ConfigError(f"there is no file {path}")
    return TlsFiles(ca=str(ca), certificate=certificate, key=key)


def _common_name(path: Path) -> str:
    try:
        subject = x509.load_pem_x509_certificate(path.read_bytes()).subject
    except ValueError as error:
        raise ConfigError(f"{path} is no certificate in PEM: {error}") from error
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if not names:
        raise ConfigError(f"{path} has no common name", hint="a unit's certificate names it there")
    return str(names[0].value)


@contextmanager
def reachable(target: Target) -> Iterator[None]:
    """Raises ConfigError when there is no broker at all, so that this does not pass for a stopped attack."""
    try:
        with socket.create_connection((target.host, target.port), PATIENCE_S):
            yield
    except OSError as error:
        raise ConfigError(f"there is no broker at {target.host}:{target.port}: {error}") from error
