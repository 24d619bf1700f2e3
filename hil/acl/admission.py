"""Attacks before anything is said: a certificate that should not count, and a TLS that is too old.

TLS 1.2 counts as too old: it sends the client's certificate, which names the unit, in the clear, and no car speaks it.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from agent.fleet.tls import TlsFiles
from hil.acl.findings import Finding, Outcome
from hil.acl.target import Target
from hil.acl.visitor import PATIENCE_S, Visitor
from hil.certificates import Authority

OLD = (("TLS 1.2", ssl.TLSVersion.TLSv1_2), ("TLS 1.1", ssl.TLSVersion.TLSv1_1))


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


def comes_with_an_expired_certificate(target: Target) -> Iterator[Finding]:
    """One of the right CA that has run out: how long a stolen one is good for is decided here."""
    name = "an expired certificate"
    if target.tls is None:
        return
    if target.expired is None:
        yield Finding(name, Outcome.UNTRIED, "give one with --expired CERT:KEY")
        return
    yield _admitted(name, Visitor(target.host, target.port, target.car, target.expired))


def speaks_an_old_tls(target: Target) -> Iterator[Finding]:
    """With its own good certificate, by an older version of the protocol."""
    if target.tls is None:
        return
    for name, version in OLD:
        context = _aged(target.tls[0], version)
        try:
            with (
                socket.create_connection((target.host, target.port), PATIENCE_S) as raw,
                context.wrap_socket(raw, server_hostname=target.host),
            ):
                yield Finding(name, Outcome.WORKED, "the broker shakes hands")
        except OSError as error:  # ssl.SSLError is one
            yield Finding(name, Outcome.STOPPED, f"refused: {error}")


def _aged(files: TlsFiles, version: ssl.TLSVersion) -> ssl.SSLContext:
    """A context that speaks this version alone, however weak this side finds it."""
    context = files.context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = version
        context.maximum_version = version
    return context


def _admitted(name: str, visitor: Visitor) -> Finding:
    with visitor:
        if visitor.connected:
            return Finding(name, Outcome.WORKED, "admitted")
    return Finding(name, Outcome.STOPPED, visitor.refusal)
