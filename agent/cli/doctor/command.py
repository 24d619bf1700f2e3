"""`driveway doctor`: carries the checks out, prints what they found, and turns it into an exit code.

Exit codes: 1 something has to be mended, 3 else where no daemon answers, 4 else where somebody should look, 0 all well.
`--json` is one document, whose names stay (docs/install.md): what judges a release reads it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict

from agent import __version__
from agent.cli import exits
from agent.cli.client import UnreachableError, socket_path
from agent.cli.doctor import computer, configuration, daemon, keys, network, service, state
from agent.cli.doctor.meaning import GROUPS, group_of, meaning_of
from agent.cli.doctor.model import Check, Finding, Result, carried_out, fail, missing, ok, warn, worst
from agent.cli.text import paint, print_json
from agent.config import Config, load
from agent.errors import ConfigError
from agent.printable import printable

FORMAT = 1
"""Of the JSON document; raised when a name changes its meaning."""
UNREACHABLE = "daemon.reachable"
COLOURS = {Result.OK: "green", Result.WARN: "yellow", Result.FAIL: "red", Result.MISSING: "grey"}


def doctor(options: argparse.Namespace) -> int:
    """Examine this installation."""
    findings, reachable = examine(options)
    result, code = judged(findings, reachable=reachable)
    if options.json:
        checks = [_as_json(one) for one in findings]
        print_json({"v": FORMAT, "version": __version__, "result": result, "exit_code": code, "checks": checks})
        return code
    for group in dict.fromkeys(group_of(one.name) for one in sorted(findings, key=_order)):
        print(group)
        for one in findings:
            if group_of(one.name) == group:
                print(_as_text(one))
    count = {kind: sum(one.result is kind for one in findings) for kind in Result}
    print(", ".join(f"{number} {kind.value}" for kind, number in count.items() if number))
    return code


def _as_json(one: Finding) -> dict[str, str]:
    about = {"group": group_of(one.name), "meaning": meaning_of(one.name)}
    return {**asdict(one), "result": one.result.value, **about}


def _order(one: Finding) -> int:
    titles = [group.title for group in GROUPS]
    title = group_of(one.name)
    return titles.index(title) if title in titles else len(titles)


def _as_text(one: Finding) -> str:
    """A line, and below what is not well what hangs on it and what to do."""
    lines = [f"  {paint(f'{one.result.value:<7}', COLOURS[one.result])}  {one.name}: {printable(one.detail)}"]
    if one.result in {Result.WARN, Result.FAIL} and meaning_of(one.name):
        lines.append(f"           {meaning_of(one.name)}")
    if one.mend:
        lines.append(f"           → {printable(one.mend)}")
    return "\n".join(lines)


def examine(options: argparse.Namespace) -> tuple[list[Finding], bool]:
    """All findings, and whether the daemon answered (or was not to be asked)."""
    findings: list[Finding] = []
    try:
        config = load(options.config)
    except ConfigError as error:
        findings.append(fail("config", error.what, error.hint))
    else:
        findings.append(ok("config", f"{options.config} is right"))
        for name, check in _offline(options, config):
            findings += carried_out(name, check)
    if options.offline:
        return findings, True
    try:
        path = socket_path(options.socket, options.config)
        answered = list(daemon.asked(path, prove=not options.quick))
    except UnreachableError as error:
        return [*findings, warn(UNREACHABLE, error.what, error.hint or "systemctl status driveway")], False
    except ConfigError as error:
        return [*findings, missing(UNREACHABLE, error.what, error.hint)], False
    return [*findings, ok(UNREACHABLE, f"it answers on {path}"), *answered], True


def judged(findings: list[Finding], *, reachable: bool) -> tuple[str, int]:
    """One word for all of it, and the exit code."""
    found = worst(findings)
    if found is Result.FAIL:
        return "failed", exits.FAILED
    if not reachable:
        return "unreachable", exits.UNREACHABLE
    return ("degraded", exits.DEGRADED) if found is Result.WARN else ("ok", exits.FINE)


def _offline(options: argparse.Namespace, config: Config) -> Iterator[tuple[str, Check]]:
    yield "permissions", lambda: configuration.permissions(options.config, config)
    yield "disk", lambda: configuration.disk(config)
    yield state.NAME, lambda: state.store(config)
    yield "clock", computer.clock
    yield "kernel", computer.kernel
    yield "keys", lambda: keys.trusted(config)
    yield "keys.unit", lambda: keys.own(config)
    yield "keys.tls", lambda: keys.certificates(config)
    yield "vehicle", lambda: configuration.coverage(config)
    yield "vehicle.bus", lambda: network.buses(config)
    yield "broker", lambda: network.brokers(config)
    yield "engine", lambda: computer.engine(config)
    yield "units", lambda: service.units(config)
