"""`driveway-hil acl-probe`: says of every attack what became of it; exit status 1 when one worked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from agent.fleet.tls import TlsFiles
from hil.acl.findings import Finding, Outcome, Report
from hil.acl.guarded import GuardedMosquitto, Member, dynamic_security
from hil.acl.probe import probe
from hil.acl.target import Target, reachable
from hil.broker import HOST, EmbeddedBroker, free_port
from hil.certificates import Authority

CAR, VICTIM, DISPATCHER, CELL, SHARE_GROUP = "probe-car", "probe-victim", "probe-dispatcher", "0a", "probe-group"


def acl_probe(target: Target, json_file: Path | None) -> int:
    """Probe it and say what came of it. Raises ConfigError when there is no broker."""
    with reachable(target):
        pass
    report = probe(target)
    _print(report)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return 0 if report.held else 1


@contextmanager
def broker_here(kind: str) -> Iterator[Target]:
    """A broker of this machine to try it on: `mosquitto`, guarded as a fleet's, or `embedded`, which guards nothing."""
    with tempfile.TemporaryDirectory(prefix="driveway-acl-") as name:
        folder = Path(name)
        if kind == "embedded":
            with EmbeddedBroker(folder, free_port()) as broker:
                yield _target(broker.port)
            return
        folder.chmod(0o755)
        authority = Authority(folder / "pki")
        (folder / "pki").chmod(0o755)
        security = dynamic_security([Member(CAR, CELL), Member(VICTIM, CELL)], [DISPATCHER], SHARE_GROUP)
        server = authority.issue("broker")
        with GuardedMosquitto(folder / "broker", free_port(), tls=server, security=security) as guarded:
            expired = _expired(authority, folder / "expired.pem")
            tls = (authority.issue(CAR), authority.issue(VICTIM), authority.issue(DISPATCHER))
            yield msgspec.structs.replace(_target(guarded.port), tls=tls, expired=expired)


def _expired(authority: Authority, copy: Path) -> TlsFiles:
    """A certificate of the car that has run out; the next one issued to it is good."""
    files = authority.issue(CAR, valid_s=-60.0, from_s=-3_600.0)
    copy.write_bytes(Path(files.certificate).read_bytes())
    return msgspec.structs.replace(files, certificate=str(copy))


def _target(port: int) -> Target:
    return Target(
        host=HOST,
        port=port,
        car=CAR,
        victim=VICTIM,
        dispatcher=DISPATCHER,
        cell=CELL,
        share_group=SHARE_GROUP,
    )


def _print(report: Report) -> None:
    console = Console()
    table = Table("attack", "outcome", "what was seen", title=f"acl-probe of {report.broker}", title_justify="left")
    for finding in report.findings:
        table.add_row(finding.attack, _said(finding), finding.detail)
    console.print(table)
    worked = [one.attack for one in report.findings if not one.held]
    untried = [one.attack for one in report.findings if one.outcome is Outcome.UNTRIED]
    if not worked:
        console.print("no attack worked" + (f"; not tried: {', '.join(untried)}" if untried else ""))
    elif report.findings[0].held:
        console.print(f"[red]{len(worked)} of {len(report.findings) - 1} attacks worked[/red]")
    else:
        console.print("[red]the control failed, so no attack was tried: nothing is proven[/red]")


def _said(finding: Finding) -> str:
    if finding.control:
        return "works" if finding.outcome is Outcome.WORKED else "[red]FAILS[/red]"
    return "[red]WORKED[/red]" if finding.outcome is Outcome.WORKED else finding.outcome.value
