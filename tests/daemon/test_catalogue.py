"""The whole daemon with a catalogue: found, believed, shown, and read back at the next start."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.cli.client import ask
from agent.cli.status import _catalogue_text, status_lines
from agent.cli.terminal import Screen
from agent.config import CatalogueConfig, Config, TrustConfig
from agent.daemon import Daemon
from agent.errors import ConfigError
from agent.identity import establish
from hil.catalogue.command import add_package, server_of
from hil.catalogue.repository import Repository
from tests.daemon.test_shutdown import PATIENCE_S, configured
from tests.inference.test_shelf import put


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A catalogue with one of the two packages in it, on a web server."""
    repository = Repository.create(tmp_path / "operator")
    (tmp_path / "root.json").write_bytes((repository.metadata / "1.root.json").read_bytes())
    for name in ("ocr", "detector"):
        put(tmp_path / "operator" / "packages", name)
    add_package(repository, tmp_path / "operator" / "packages" / "ocr")
    repository.publish()
    server = server_of(repository, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


def with_catalogue(tmp_path: Path, url: str, root: str = "root.json") -> Config:
    config = configured(tmp_path)
    for name in ("ocr", "detector"):
        (tmp_path / "operator" / "packages" / name).rename(tmp_path / "packages" / name)
    trust = TrustConfig(catalogue=CatalogueConfig(root=root, url=url))
    fleet = msgspec.structs.replace(config.fleet, allow_loopback_http=True)
    return msgspec.structs.replace(config, trust=trust, fleet=fleet)


def status_once(config: Config, *, refreshed: bool, verb: str = "status", **arguments: str) -> dict[str, Any]:
    """What one run of the daemon shows, or answers to another verb, as soon as it has refreshed, or at once."""

    async def main() -> dict[str, Any]:
        daemon = Daemon(config, await establish(config))
        keeper = daemon.parts.catalogue
        assert keeper is not None
        run = asyncio.create_task(daemon.run())
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not keeper.status().timestamp or (refreshed and not keeper.status().checked_at):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                shown: dict[str, Any] = await asyncio.to_thread(
                    ask, config.path(config.control_socket), verb, **arguments
                )
        finally:
            daemon.stop()
            await run
        return shown

    return asyncio.run(main())


def test_an_update_that_the_catalogue_does_not_list_waits_with_a_reason(tmp_path: Path, url: str) -> None:
    """Asked as the update program asks: over the control socket, as root."""
    repository = Repository(tmp_path / "operator")
    repository.put("releases/driveway-agent/9.8.0/driveway.deb", b"a package")
    repository.publish()
    config = with_catalogue(tmp_path, url)
    said = [status_once(config, refreshed=True, verb="update", release=release) for release in ("9.8.0", "9.9.0")]
    assert "not in the catalogue" not in said[0]["why"]
    assert (said[1]["ready"], said[1]["lease"]) == (False, "")
    assert "version 9.9.0 of the agent is not in the catalogue" in said[1]["why"]


def test_the_daemon_believes_it_shows_it_and_knows_it_at_the_next_start(tmp_path: Path, url: str) -> None:
    config = with_catalogue(tmp_path, url)
    shown = status_once(config, refreshed=True)
    catalogue = shown["catalogue"]
    assert (catalogue["root"], catalogue["timestamp"], catalogue["packages"]) == (1, 2, 1)
    assert (catalogue["error"], catalogue["expired"], catalogue["clock_behind_s"]) == ("", False, 0)
    assert set(shown["refused_packages"]) == {"detector"}
    assert any(
        line.endswith(", 1 packages") for line in status_lines(shown, Screen(10_000)) if line.startswith("catalogue")
    )
    nowhere = msgspec.structs.replace(config.trust.catalogue, url="http://127.0.0.1:1/")  # type: ignore[type-var]
    offline = msgspec.structs.replace(config, trust=TrustConfig(catalogue=nowhere))
    again = status_once(offline, refreshed=False)
    assert again["catalogue"]["timestamp"] == 2
    assert set(again["refused_packages"]) == {"detector"}


def test_what_is_wrong_with_it_is_said_in_words() -> None:
    none = {"timestamp": None, "expires_at": None, "expired": False, "packages": 0, "clock_behind_s": 0, "error": ""}
    assert _catalogue_text(none) == "none yet: nothing may run"
    late = none | {"timestamp": 2, "expires_at": "2026-12-01T00:00:00.000Z", "expired": True, "clock_behind_s": 900}
    text = _catalogue_text(late | {"error": "GET x was answered 503 [unreachable]"})
    assert text.startswith("expired ")
    assert "clock is at least 900 s behind" in text
    assert text.endswith("503 [unreachable]")


def test_a_root_that_is_not_there_is_an_error_of_the_configuration(tmp_path: Path, url: str) -> None:
    config = with_catalogue(tmp_path, url, root="nowhere.json")

    async def main() -> None:
        Daemon(config, await establish(config))

    with pytest.raises(ConfigError, match=r"trust\.catalogue\.root"):
        asyncio.run(main())
