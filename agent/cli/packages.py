"""`driveway packages [DIR…]`: the packages on this computer, whether each may run, and what it takes.

The daemon is asked where one runs: only it knows which engine plans are built. Else, and for folders that are named,
the files are looked at: whole or damaged, signed by whom, and whether the model may be shown to an engine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.cli import exits
from agent.cli.client import UnreachableError, ask, socket_path
from agent.cli.text import paint, print_json, shown
from agent.config import load
from agent.errors import ConfigError
from agent.identity import read_key
from agent.package import MANIFEST
from agent.package_list import in_folders

COLOURS = {"ready": "green", "refused": "red", "building": "yellow", "no plan": "yellow", "waiting": "yellow"}


def packages(options: argparse.Namespace) -> int:
    """Print every package; a refused one makes the answer degraded."""
    found = _named(options) if options.folders else _installed(options)
    if options.json:
        print_json(found)
    else:
        print("\n".join(_words(one) for one in shown(found)) or "There is no package.")
    return exits.DEGRADED if any(one["state"] == "refused" for one in found) else exits.FINE


def _named(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The folders that were given, and what is in them; of folders in them that have no manifest, only how many."""
    found: list[dict[str, Any]] = []
    strangers = 0
    for folder in options.folders:
        inside = _looked_at(options.config, [folder])
        packages_in = [
            one for one in inside if (folder / MANIFEST).exists() or (folder / one["folder"] / MANIFEST).exists()
        ]
        strangers += len(inside) - len(packages_in)
        found += packages_in
    if strangers:
        are = "folder there is no package: it has" if strangers == 1 else "folders there are no packages: they have"
        print(f"driveway: {strangers} {are} no {MANIFEST}", file=sys.stderr)
    return found


def _installed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the daemon holds; where none runs, what lies in the configured folder."""
    if options.socket is None and not options.config.exists():
        raise ConfigError(f"there is no configuration {options.config}", hint="give --config FILE, or folders")
    try:
        answer: list[dict[str, Any]] = ask(socket_path(options.socket, options.config), "packages")
    except UnreachableError as error:
        if not error.absent or not options.config.exists():
            raise
        config = load(options.config)
        return _looked_at(options.config, [config.path(config.inference.packages_dir)])
    return answer


def _looked_at(config_file: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    keys = None
    if config_file.exists():
        config = load(config_file)
        keys = read_key(config, config.inference.publisher_key, "inference.publisher_key")
    views: list[dict[str, Any]] = msgspec.to_builtins(in_folders(folders, keys))
    return views


def _words(one: dict[str, Any]) -> str:
    state = paint(one["state"], COLOURS[one["state"]]) if one["state"] in COLOURS else one["state"]
    if not one["name"]:
        return f"{one['folder']}: {state}: {one['detail']}"
    where = f"{state} on {one['executor']}" if one["executor"] else state
    known = [part for part in (one["signature"], where, one["detail"]) if part not in {"", "unknown"}]
    limits = one["limits"]
    rest = f"{limits['max_items']} items a job, {limits['memory_mb']} MiB of memory, {limits['load_s']} s to load"
    return "\n".join(
        (
            f"{one['folder']}: {one['name']} {one['version']} {one['sha256'][:16]}…, {', '.join(known)}",
            f"    {one['input']} → {' → '.join(one['pipeline'])}",
            f"    buckets {', '.join(_bucket(bucket) for bucket in one['buckets'])}",
            f"    at most {limits['max_item_bytes'] / 1024**2:.1f} MiB an item, {rest}",
        )
    )


def _bucket(bucket: dict[str, Any]) -> str:
    """`8 of 320 px`, `1 of 480 x 640 px`: items, height x width."""
    sizes = [str(size) for size in (bucket["height"], bucket["width"]) if size is not None]
    return f"{bucket['items']} of {' x '.join(sizes)} px" if sizes else str(bucket["items"])
