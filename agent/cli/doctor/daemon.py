"""Asked of the daemon: its gate, its link, its store and ledger, its accelerator, and a worker's golden vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent import __version__
from agent.cli.client import UnreachableError, ask, ask_within
from agent.cli.doctor.model import Finding, carried_out, fail, missing, ok, warn
from agent.cli.text import shown
from agent.errors import DrivewayError

PROOF_S = 400.0
"""A package's time to load is 300 s at most, and the ledger's leaves take theirs."""
FAULTY = {"storage", "self_test"}
"""A gate that these shut does not open by itself."""


def asked(path: Path, *, prove: bool) -> Iterator[Finding]:
    """Everything there is to ask; raises UnreachableError. `prove`: also have a worker compute its golden vector."""
    status = shown(ask(path, "status"))
    for name, check in _CHECKS.items():
        yield from carried_out(name, lambda check=check: check(status))  # type: ignore[misc]
    yield from carried_out("daemon.key", lambda: _key(shown(ask(path, "keys"))))
    yield from carried_out("daemon.packages", lambda: _packages(shown(ask(path, "packages"))))
    if not prove:
        yield missing("daemon.golden", "not asked for")
        return
    try:
        tested = shown(ask_within(PROOF_S, path, "self_test"))
    except UnreachableError:
        raise
    except DrivewayError as error:
        yield missing("daemon.self_test", error.what, error.hint)
        yield missing("daemon.golden", error.what, error.hint)
        return
    yield from carried_out("daemon.self_test", lambda: _steps(tested["steps"]))
    yield from carried_out("daemon.golden", lambda: _golden(tested["proof"]))


def _version(status: dict[str, Any]) -> Finding:
    if status["version"] != __version__:
        mend = "restart the daemon when it holds no lease: another version than the installed one runs"
        return warn("daemon.version", f"the daemon is {status['version']}, and this command {__version__}", mend)
    return ok("daemon.version", status["version"])


def _gate(status: dict[str, Any]) -> Finding:
    """A shut gate is what this program is for, except where a fault shuts it."""
    reasons = status["reasons"]
    faults = [one for one in reasons if one["gate"] in FAULTY and one["state"] == "closed"]
    if faults:
        return fail("daemon.gate", f"{faults[0]['gate']}: {faults[0]['text']}", "driveway why")
    if reasons:
        return ok("daemon.gate", f"{status['gate']}: {reasons[0]['gate']}: {reasons[0]['text']}")
    return ok("daemon.gate", f"{status['gate']}; {status['state']}")


def _link(status: dict[str, Any]) -> Finding:
    link = status["link"]
    if link["connected"]:
        return ok("daemon.link", f"connected to {link['broker']}")
    said = link["detail"] or "it is being made"
    return warn(
        "daemon.link", f"no broker is connected: {said}", "check fleet.brokers, the network and the certificates"
    )


def _sources(status: dict[str, Any]) -> Finding:
    lost = [f"{one['name']} ({one['detail']})" for one in status["sources"] if not one["alive"]]
    if lost:
        mend = "a car that sleeps is silent; else check the bus and the profile"
        return warn("daemon.sources", f"not heard: {', '.join(lost)}", mend)
    return ok("daemon.sources", f"{len(status['sources'])} are heard")


def _store(status: dict[str, Any]) -> Finding:
    if status["state"] == "fault":
        return fail("daemon.store", "the store does not take what is earned", "driveway why; check the disk")
    return ok("daemon.store", f"{status['outbox']['pending']} hand-ins wait for a verdict")


def _ledger(status: dict[str, Any]) -> Finding:
    ledger = status["ledger"]
    if ledger["dispute"]:
        return fail(
            "daemon.ledger", f"in dispute: {ledger['dispute']}", "show the operator `driveway bundle` and the ledger"
        )
    if ledger["unpaid_since"]:
        since = ledger["unpaid_since"]
        return warn("daemon.ledger", f"hand-ins wait for the witness since {since}", "check the link to the dispatcher")
    return ok("daemon.ledger", f"{ledger['size']} leaves, {ledger['witnessed']} witnessed")


def _catalogue(status: dict[str, Any]) -> Finding:
    """Fresh enough to be believed; its keepers renew it every few days."""
    one = status.get("catalogue")
    if one is None:
        return missing("daemon.catalogue", "none is configured: packages count by their publisher's signature")
    if one["root"] is None:
        said = f"there is none yet: {one['error'] or 'it is being fetched'}"
        return warn("daemon.catalogue", said, "check trust.catalogue.url and the network")
    if one["expired"]:
        mend = "check trust.catalogue.url and the network; else the operator has to sign a new one"
        return warn("daemon.catalogue", f"it expired at {one['expires_at']}: {one['error']}".rstrip(": "), mend)
    if one["clock_behind_s"]:
        said = f"the clock is {one['clock_behind_s']} s behind what was signed"
        return warn("daemon.catalogue", said, "set the clock")
    return ok("daemon.catalogue", f"checked at {one['checked_at']}, good until {one['expires_at']}")


def _accelerator(status: dict[str, Any]) -> Finding:
    one = status["accelerator"]
    said = f"{one['executor']} {one['version']} {one['device']}".strip()
    match one["state"]:
        case "ready" if one["plans_missing"]:
            return ok("daemon.accelerator", f"{said}; {one['plans_missing']} plans are to be built while parked")
        case "ready":
            return ok("daemon.accelerator", said)
        case "starting":
            return missing("daemon.accelerator", f"{said}: {one['detail']}")
        case _:
            return fail(
                "daemon.accelerator", f"{said} is {one['state']}: {one['detail']}", "driveway why says what to do"
            )


def _key(keys: dict[str, Any]) -> Finding:
    said = f"{keys['backend']}, epoch {keys['epoch']}"
    if keys["state"] == "ready" and keys["sign_ms"] is not None:
        return ok("daemon.key", f"{said}: it signs, in {keys['sign_ms']:.1f} ms")
    return fail("daemon.key", f"{said}: {keys['state']} {keys['reason']}".rstrip(), "see docs/keys.md")


def _packages(packages: list[dict[str, Any]]) -> Iterator[Finding]:
    refused = [one for one in packages if one["state"] == "refused"]
    for one in refused:
        detail = f"{one['folder']} is refused: {one['detail']}"
        yield warn("daemon.packages", detail, "ask its publisher, or take it out of packages_dir")
    if not packages:
        yield warn("daemon.packages", "there is none, so no work is asked for", "put packages into packages_dir")
    elif not refused:
        yield ok("daemon.packages", ", ".join(f"{one['folder']} ({one['state']})" for one in packages))


def _steps(steps: dict[str, str]) -> Iterator[Finding]:
    for name, problem in steps.items():
        if problem:
            yield fail(f"daemon.self_test.{name}", problem, "the gate stays shut until it is mended: driveway why")
    if not any(steps.values()):
        yield ok("daemon.self_test", ", ".join(steps).replace("_", " "))


def _golden(proof: dict[str, Any]) -> Iterator[Finding]:
    if proof["result"] == "passed":
        said = f"{proof['package']} on {proof['executor']} ({proof['device']}) is right, after {proof['took_ms']} ms"
        yield ok("daemon.golden", said)
        absent = {name: state for name, state in proof["confinement"].items() if state != "enforced"}
        stands = f"{len(proof['confinement']) - len(absent)} measures stand"
        yield ok("daemon.cage", f"{stands}; {', '.join(f'{name}: {state}' for name, state in absent.items()) or 'all'}")
    elif proof["result"] == "failed":
        yield fail(
            "daemon.golden",
            f"{proof['package']}: {proof['detail']}",
            "the worker's words say why; see docs/inference.md",
        )
    else:
        yield missing("daemon.golden", proof["detail"], "ask again while the car is parked and the gate is open")


_CHECKS: dict[str, Callable[[dict[str, Any]], Finding]] = {
    "daemon.version": _version,
    "daemon.gate": _gate,
    "daemon.link": _link,
    "daemon.sources": _sources,
    "daemon.store": _store,
    "daemon.ledger": _ledger,
    "daemon.catalogue": _catalogue,
    "daemon.accelerator": _accelerator,
}
