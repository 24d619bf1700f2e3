"""The policy that the catalogue brings: checked before it is kept, and used from the next start on.

A profile is a TOML file such as `driveway config check --policy` reads: a `[policy]` table, or that table alone. It
replaces the `[policy]` of the configuration as a whole, which counts until the first profile has come. It is read once,
at the start, as every policy is: limits do not change under a lease. One that contradicts itself is never kept.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from agent.config import Config, load_policy
from agent.errors import ConfigError, StoreError
from agent.log import logger


class Profile(msgspec.Struct, frozen=True):
    """A policy by its name in the catalogue, and where it is kept."""

    name: str
    path: Path


def configured_profile(config: Config) -> Profile | None:
    """The profile that the configuration asks for; None where it asks for none."""
    catalogue = config.trust.catalogue
    if catalogue is None or not catalogue.policy:
        return None
    return Profile(catalogue.policy, config.path(config.state_dir) / "catalogue" / f"{catalogue.policy}.toml")


def keep_profile(path: Path, body: bytes) -> None:
    """Keep a profile for the next start; blocks. Raises ConfigError for one that cannot be used, StoreError."""
    try:
        if path.exists() and path.read_bytes() == body:
            return
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        load_policy(part)
        part.replace(path)
    except OSError as error:
        raise StoreError(f"the policy {path} cannot be kept: {error}") from error
    logger().info("policy_kept", path=str(path), counts="from the next start on")


def with_profile(config: Config) -> Config:
    """The configuration with the profile that was kept; as it is where there is none, or none that can be used."""
    profile = configured_profile(config)
    if profile is None or not profile.path.exists():
        return config
    try:
        policy = load_policy(profile.path)
    except ConfigError as error:
        logger().warning("policy_not_used", error=error.what, hint=error.hint)
        return config
    return msgspec.structs.replace(config, policy=policy)
