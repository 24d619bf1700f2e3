"""`driveway-hil acl-probe HOST:PORT …`: runs the known attacks of a hostile car against a broker; any that works fails.

It needs two cars' certificates (one plays the attacker, the other the victim) and a dispatcher's, from the broker's own
CA, and a broker that nobody else uses at the time: a staging one, or a new one before it goes to work. All that it
sends carries a mark of its own, and what it leaves there (retained messages, should that work) it takes away again.

What a SUBACK says proves nothing (Mosquitto with `acl_file` grants what it then drops), so each attack is judged by
what arrives where. First it checks that both cars can do what they should: a broker that lets nobody do anything stops
every attack, and serves nobody. That something did not arrive is believed only of somebody to whom what was sent after
it did; else the finding is `unproven`, which counts as a failure.

`$SYS` is the broker's own affair: that a car may read it is a finding only when what it reads there names another
client, or a topic of ours.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import msgspec

from hil.acl.admission import comes_with_an_expired_certificate, comes_without_certificate, speaks_an_old_tls
from hil.acl.findings import Finding, Outcome, Report
from hil.acl.target import Target
from hil.acl.visitor import Visitor

MESSAGES = 20
SETTLE_S = 0.3
"""For what no message tells of: that a broker has found a connection gone, or ends one of its own accord."""
CONTROL_TOPIC = "$CONTROL/dynamic-security/v1"
ORDER_TRIES = 3


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
    """Each of the two cars is heard by the dispatcher, and hears it."""
    with ExitStack() as stack:
        dispatcher = _dispatcher(stack, target)
        for name in (target.car, target.victim):
            car = stack.enter_context(target.visit(name))
            if not (dispatcher.connected and car.connected):
                return Finding("control", Outcome.STOPPED, dispatcher.refusal or car.refusal, control=True)
            _listen(target, car)
            if not _is_heard(target, car, dispatcher):
                return Finding("control", Outcome.STOPPED, f"the dispatcher does not hear {name}", control=True)
            if not _can_hear(target, car, dispatcher):
                return Finding("control", Outcome.STOPPED, f"{name} does not hear the dispatcher", control=True)
    return Finding("control", Outcome.WORKED, "both cars and the dispatcher hear each other", control=True)


def _listen(target: Target, car: Visitor) -> None:
    """What a car subscribes to."""
    car.subscribe(f"dw/v1/d/{car.name}/+", f"dw/v1/b/{target.cell}/pace")


def _is_heard(target: Target, car: Visitor, dispatcher: Visitor) -> bool:
    """Whether the dispatcher hears what a car says now: it has heard all that it may of what was said before."""
    mark = _mark()
    car.publish(target.up(car.name, "request"), mark)
    return dispatcher.hears(mark)


def _can_hear(target: Target, car: Visitor, dispatcher: Visitor) -> bool:  # noqa: ARG001 - as its counterpart
    """Whether a car hears what the dispatcher says to it now."""
    mark = _mark()
    dispatcher.publish(f"dw/v1/d/{car.name}/grant", mark)
    return car.hears(mark)


# --- attacks ------------------------------------------------------------------------------------------------------


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
        if not _is_heard(target, victim, dispatcher):
            _is_heard(target, victim, dispatcher)  # every other one may be the attacker's
        arrived = sum(mark in dispatcher.heard for mark in marks)
        outcome = Outcome.STOPPED if arrived == MESSAGES else Outcome.WORKED
        yield Finding("joining the share group", outcome, f"{arrived} of {MESSAGES} reach the dispatcher")


def listens_to_others(target: Target) -> Iterator[Finding]:
    """Filters that are not its own."""
    filters = (
        "#",
        "dw/v1/#",
        f"dw/v1/d/{target.victim}/+",
        "dw/v1/d/+/+",
        target.up(target.victim, "+"),
        "+/+/u/#",
        "$share/evil/dw/v1/u/+/+/+",
        "$share/evil/dw/v1/d/+/+",
    )
    for old in (False, True):
        for topic_filter in filters if not old else filters[:1]:
            name = f"listening to {topic_filter}" + (" with MQTT 3.1.1" if old else "")
            yield _overheard(target, name, topic_filter, old=old)


def _overheard(target: Target, name: str, topic_filter: str, *, old: bool) -> Finding:
    with ExitStack() as stack:
        dispatcher, victim = _dispatcher(stack, target), stack.enter_context(target.visit(target.victim))
        attacker = stack.enter_context(target.visit(target.car, old_protocol=old))
        _listen(target, attacker)
        attacker.subscribe(topic_filter)
        _listen(target, victim)
        up, down = _mark(), _mark()
        victim.publish(target.up(target.victim, "result"), up)
        dispatcher.publish(f"dw/v1/d/{target.victim}/grant", down)
        arrived = dispatcher.hears(up) and victim.hears(down)
        can_hear = _can_hear(target, attacker, dispatcher)
        admitted = attacker.connected
        caught = [what for what, mark in (("a result", up), ("a grant", down)) if mark in attacker.heard]
    if caught:
        return Finding(name, Outcome.WORKED, f"hears {' and '.join(caught)} of {target.victim}")
    if not arrived or (admitted and not can_hear):
        return Finding(name, Outcome.UNPROVEN, "those who should hear something do not")
    return Finding(name, Outcome.STOPPED, "hears nothing" if admitted else "is not admitted")


def reads_the_brokers_own_topics(target: Target) -> Iterator[Finding]:
    """`$SYS`, where some brokers say who connects, and what they log."""
    name = "listening to $SYS/#"
    with ExitStack() as stack:
        dispatcher, attacker = _dispatcher(stack, target), stack.enter_context(target.visit(target.car))
        _listen(target, attacker)
        attacker.subscribe("$SYS/#")
        victim = stack.enter_context(target.visit(target.victim))
        _listen(target, victim)
        if not _is_heard(target, victim, dispatcher) or (
            attacker.connected and not _can_hear(target, attacker, dispatcher)
        ):
            yield Finding(name, Outcome.UNPROVEN, "those who should hear something do not")
            return
        own = {topic for topic in attacker.topics if topic.startswith("$SYS/")}
        said = [*own, *(payload.decode("utf-8", "replace") for payload in attacker.heard)]
    names = (target.victim, target.dispatcher, "dw/v1/")
    leaks = sorted({one for one in names for text in said if one in text})
    if leaks:
        yield Finding(name, Outcome.WORKED, f"reads of {', '.join(leaks)}")
    else:
        yield Finding(name, Outcome.STOPPED, f"reads {len(own)} topics, none of a client" if own else "hears nothing")


def governs_the_broker(target: Target) -> Iterator[Finding]:
    """Mosquitto's dynamic-security plugin takes orders by MQTT: whoever may give one may do anything.

    Tried with a topic of the probe's own that it would be allowed to use then; the order is taken back.
    """
    name, word = f"orders to {CONTROL_TOPIC}", f"acl-probe-{secrets.token_hex(4)}"
    acls = [
        {"acltype": kind, "topic": word, "allow": True}
        for kind in ("publishClientSend", "publishClientReceive", "subscribeLiteral")
    ]
    allow: tuple[dict[str, object], ...] = (
        {"command": "createRole", "rolename": word, "acls": acls},
        {"command": "addClientRole", "username": target.car, "rolename": word},
    )
    if _hears_itself(target, word):
        yield Finding(name, Outcome.UNPROVEN, "a car may use any topic, so an order would make no difference")
        return
    _order(target, *allow)
    obeyed = _hears_itself(target, word)
    _order(target, {"command": "deleteRole", "rolename": word})
    yield Finding(name, Outcome.WORKED, "the broker obeys") if obeyed else Finding(name, Outcome.STOPPED, "no effect")


def _order(target: Target, *commands: dict[str, object]) -> None:
    """Give it, and again where the broker dropped the connection first: it does so to who has just lost a role."""
    for _ in range(ORDER_TRIES):
        with target.visit(target.car) as attacker:
            if attacker.publish(CONTROL_TOPIC, msgspec.json.encode({"commands": commands})):
                return


def _hears_itself(target: Target, topic: str) -> bool:
    with target.visit(target.car) as attacker:
        mark = _mark()
        attacker.subscribe(topic)
        attacker.publish(topic, mark)
        return attacker.hears(mark, patience_s=2 * SETTLE_S)


def speaks_for_others(target: Target) -> Iterator[Finding]:
    """Topics that are not its own to publish to, the will among them."""
    with ExitStack() as stack:
        dispatcher, victim = _dispatcher(stack, target), stack.enter_context(target.visit(target.victim))
        _listen(target, victim)
        for name, topic, listener in (
            ("a result in another's name", target.up(target.victim, "result"), dispatcher),
            ("a grant to another", f"dw/v1/d/{target.victim}/grant", victim),
            ("the cell's pace", f"dw/v1/b/{target.cell}/pace", victim),
        ):
            with target.visit(target.car) as attacker:
                mark = _mark()
                attacker.publish(topic, mark)
                yield _reached(target, name, mark, dispatcher, victim, listener)
        mark = _mark()
        attacker = target.visit(target.car, will=(target.up(target.victim, "status"), mark))
        with attacker:
            attacker.vanish()
        time.sleep(SETTLE_S)
        yield _reached(target, "a will in another's name", mark, dispatcher, victim, dispatcher)


def strays_into_another_cell(target: Target) -> Iterator[Finding]:
    """Its own name, and its own key, in a cell that is not its own: the load, and the pace, of others."""
    cell = "0a" if target.cell != "0a" else "0b"
    with ExitStack() as stack:
        dispatcher, victim = _dispatcher(stack, target), stack.enter_context(target.visit(target.victim))
        _listen(target, victim)
        with target.visit(target.car) as attacker:
            mark = _mark()
            attacker.publish(f"dw/v1/u/{cell}/{target.car}/request", mark)
            yield _reached(target, "a request in another cell", mark, dispatcher, victim, dispatcher)
        with target.visit(target.car) as attacker:
            _listen(target, attacker)
            attacker.subscribe(f"dw/v1/b/{cell}/pace")
            mark = _mark()
            dispatcher.publish(f"dw/v1/b/{cell}/pace", mark)
            can_hear = _can_hear(target, attacker, dispatcher)
            name = "listening to another cell's pace"
            if mark in attacker.heard:
                yield Finding(name, Outcome.WORKED, f"{target.car} hears it")
            elif can_hear:
                yield Finding(name, Outcome.STOPPED, "hears nothing")
            else:
                yield Finding(name, Outcome.UNPROVEN, f"{target.car} does not hear the dispatcher")


def leaves_messages_behind(target: Target) -> Iterator[Finding]:
    """Retained messages: they outlive their sender, fill the broker's memory, and reach whoever comes later.

    Who may publish to a topic of its own invention may retain any number of them; that is judged by who hears it now,
    since brokers differ in whether a share group hears what was retained.
    """
    own, invented = target.up(target.car, "status"), target.up(target.car, "probe")
    pace = f"dw/v1/b/{target.cell}/pace"
    marks = {topic: _mark() for topic in (own, invented, pace)}
    with ExitStack() as stack:
        dispatcher, victim = _dispatcher(stack, target), stack.enter_context(target.visit(target.victim))
        _listen(target, victim)
        _retain(target, marks)
        name = "a retained message on a topic it invents"
        yield _reached(target, name, marks[invented], dispatcher, victim, dispatcher)
    with ExitStack() as stack:  # those who come later
        dispatcher, victim = _dispatcher(stack, target), stack.enter_context(target.visit(target.victim))
        _listen(target, victim)
        name = "a retained message under its own name"
        found = _reached(target, name, marks[own], dispatcher, victim, dispatcher)
        if found.outcome is Outcome.WORKED:
            bound = "kept, one for each kind of message; dispatchers hear it again as they hear any old one"
            found = Finding(name, Outcome.BOUNDED, bound)
        yield found
        yield _reached(target, "a retained pace", marks[pace], dispatcher, victim, victim)
        if marks[pace] in victim.heard:
            dispatcher.publish(pace, b"", retain=True)
    _retain(target, {own: b"", invented: b""})


def _retain(target: Target, bodies: Mapping[str, bytes]) -> None:
    """As the attacker; an empty body takes away what was retained."""
    with target.visit(target.car) as attacker:
        for topic, body in bodies.items():
            attacker.publish(topic, body, retain=True)


ATTACKS: tuple[Callable[[Target], Iterator[Finding]], ...] = (
    comes_without_certificate,
    comes_with_an_expired_certificate,
    speaks_an_old_tls,
    takes_anothers_client_id,
    joins_the_dispatchers,
    listens_to_others,
    reads_the_brokers_own_topics,
    governs_the_broker,
    speaks_for_others,
    strays_into_another_cell,
    leaves_messages_behind,
)


def _dispatcher(stack: ExitStack, target: Target) -> Visitor:
    dispatcher = stack.enter_context(target.visit(target.dispatcher))
    dispatcher.subscribe(f"$share/{target.share_group}/dw/v1/u/+/+/+")
    return dispatcher


def _reached(  # noqa: PLR0917 - the scene
    target: Target, name: str, mark: bytes, dispatcher: Visitor, victim: Visitor, listener: Visitor
) -> Finding:
    """Whether a message arrived that was sent before this is asked; both who might hear it are shown to hear."""
    both_hear = _is_heard(target, victim, dispatcher) and _can_hear(target, victim, dispatcher)
    if mark in listener.heard:
        return Finding(name, Outcome.WORKED, f"{listener.name} hears it")
    if not both_hear:
        return Finding(name, Outcome.UNPROVEN, f"{victim.name} and the dispatcher do not hear each other")
    return Finding(name, Outcome.STOPPED, "nobody hears it, and they hear what comes after it")


def _mark() -> bytes:
    return b"acl-probe " + secrets.token_hex(8).encode("ascii")
