"""`driveway run`: the daemon in the foreground, as a service manager or a person starts it."""

from __future__ import annotations

import argparse

from agent import log
from agent.cli import exits
from agent.config import load


def run(options: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    from agent import daemon  # noqa: PLC0415 - after the configuration is known to be right

    config = load(options.config)
    log.configure()
    log.hear_libraries()
    log.about(lambda: {"unit": config.unit.id})
    log.keep_secret(config.fleet.enrol_code)
    daemon.run(config)
    return exits.FINE
