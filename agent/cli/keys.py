"""`driveway keys`: the unit's own key, where it lives, and whether it signs at this moment.

The daemon is asked where one runs. Where none does, the key that the configuration names is looked at from here,
nothing is made or changed, and the answer says so. `--csr` prints a certificate request that the key signed.

`driveway keys rotate` has it succeeded by a new one (`agent.rotation`): by the daemon where one runs, else from here.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent import log
from agent.cli import exits
from agent.cli.client import UnreachableError, ask, ask_within, socket_path
from agent.cli.text import paint, print_json, shown
from agent.config import Config, load
from agent.enrolled import ENROLLED
from agent.errors import TrustError
from agent.identity import establish
from agent.key_view import look
from agent.printable import printable
from agent.rotation import Rotated, home_of
from agent.rotation import rotate as take_new_key
from agent.store import Store, StoreThread
from agent.trust.csr import certificate_request, to_pem
from agent.trust.hardware import BlockingSigner, HardwareSigner
from agent.trust.keyring import unit_key
from agent.trust.succession import MAX_OVERLAP_S

COLOURS = {"ready": "green", "absent": "yellow", "slow": "yellow"}

ROTATE_S = 300.0
"""A TPM makes a key, evidence and opens a challenge, each in up to a minute."""
STORE = "driveway.db"

Result = TypeVar("Result")


def keys(options: argparse.Namespace) -> int:
    """Print the key; exit code 4 when it does not sign."""
    if options.csr:
        config = load(options.config)
        print(_with_key(config, lambda key: to_pem(certificate_request(config.unit.id, BlockingSigner(key)))), end="")
        return exits.FINE
    try:
        data, source = ask(socket_path(options.socket, options.config), "keys"), "daemon"
    except UnreachableError as error:
        if not error.absent:
            raise
        config = load(options.config)
        data, source = _with_key(config, lambda key: msgspec.to_builtins(asyncio.run(look(key)))), "state directory"
    if options.json:
        print_json({"source": source, **data})
    else:
        _print(shown(data), source)
        print("\n".join(map(printable, data["public_key_pem"].splitlines())))
    return exits.FINE if data["state"] == "ready" else exits.DEGRADED


def rotate(options: argparse.Namespace) -> int:
    """Have the key succeeded by a new one, and print that."""
    asked = {"reason": options.reason, "overlap_s": options.overlap // 1000}
    if asked["overlap_s"] > MAX_OVERLAP_S:
        said = f"--overlap is {asked['overlap_s'] / 86_400:g} days"
        raise exits.UsageError(said, hint=f"the old key counts for {MAX_OVERLAP_S // 86_400} days at most")
    try:
        data = ask_within(ROTATE_S, socket_path(options.socket, options.config), "keys_rotate", **asked)
    except UnreachableError as error:
        if not error.absent:
            raise
        data = msgspec.to_builtins(_rotate_here(load(options.config), options.reason, asked["overlap_s"]))
    if options.json:
        print_json(data)
        return exits.FINE
    said = shown(data)
    print(f"epoch       {said['epoch']} (protection: {said['protection']})")
    print(f"keyid       {said['keyid']}")
    if said["endorsement"]:
        print(f"tpm         {said['endorsement']}")
    days = f"{data['overlap_s'] / 86_400:g} days"
    print(f"before      {said['former_keyid']}; what its sessions signed counts for {days} more")
    return exits.FINE


def _rotate_here(config: Config, reason: str, overlap_s: int) -> Rotated:
    """Without a daemon; raises DrivewayError."""
    folder = config.path(config.state_dir)
    if not (folder / ENROLLED).exists():
        raise TrustError("this unit is not enrolled yet", hint="start the daemon once")
    log.configure()  # on standard error: what the agent notes is not the answer
    return asyncio.run(_new_key(config, folder / STORE, reason, overlap_s, has_worked=(folder / STORE).exists()))


async def _new_key(config: Config, store: Path, reason: str, overlap_s: int, *, has_worked: bool) -> Rotated:
    identity = await establish(config)
    try:
        last = await _last_session(store, identity.key.known.epoch) if has_worked else 0
        home = home_of(config, identity, identity.dispatcher_keys)
        key, rotated = await take_new_key(home, identity.key, reason=reason, overlap_s=overlap_s, last_session=last)
        key.close()
    finally:
        identity.key.close()
    return rotated


async def _last_session(path: Path, epoch: int) -> int:
    store = StoreThread(path)
    await store.open()
    try:
        return await store.call(Store.last_session, epoch)
    finally:
        await store.close()


def _with_key(config: Config, use: Callable[[HardwareSigner], Result]) -> Result:
    """What `use` makes of the key that the configuration names, which has to be there; raises TrustError."""
    key = asyncio.run(unit_key(config.key, config.path(config.state_dir), create=False))
    try:
        return use(key)
    finally:
        key.close()


def _print(data: dict[str, Any], source: str) -> None:
    print(f"backend     {data['backend']} (protection: {data['protection']})")
    print(f"keyid       {data['keyid']}")
    print(f"epoch       {data['epoch']}")
    took = "" if data["sign_ms"] is None else f", a signature in {data['sign_ms']:.1f} ms"
    print(f"state       {paint(data['state'], COLOURS.get(data['state'], 'red'))}{took}")
    if data["reason"]:
        again = data["retry_in_s"]
        when = "not tried again until a restart" if again is None else f"tried again in {again:.0f} s"
        print(f"because     {data['reason']} ({when})")
    if data["tpm"]:
        tpm = data["tpm"]
        versions = f"revision {tpm['revision']}, firmware {tpm['firmware']}"
        print(f"tpm         {tpm['manufacturer']} {tpm['vendor']}, {versions}")
        safe = "" if tpm["clock_is_safe"] else ", not safe: it may have gone back in a power cut"
        print(f"tpm clock   {tpm['clock_ms']} ms, {tpm['reset_count']} resets, {tpm['restart_count']} restarts{safe}")
    print(f"seen by     the {source}" + ("" if source == "daemon" else "; no daemon runs"))
