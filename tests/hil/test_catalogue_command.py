"""`driveway-hil catalogue`: what an operator does from the first day to a stolen key, and what a car makes of it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from threading import Thread

import pytest

from agent.fleet.catalogue_fetch import fetch_file
from agent.fleet.channel import Channel, Web
from agent.trust.catalogue import Catalogue
from agent.trust.catalogue_client import CatalogueClient
from agent.trust.catalogue_store import CatalogueStore
from agent.trust.keys import FileSigner
from hil.catalogue.command import server_of
from hil.catalogue.repository import Repository, utc_now
from hil.cli import main
from tests.inference.test_shelf import put


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert main(["catalogue", "init", str(tmp_path / "c")]) == 0
    return tmp_path / "c"


def believed(folder: Path) -> Catalogue:
    """What a new car that was given the first root believes, over a real web server."""
    made = Repository(folder)
    server = server_of(made, 0)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        root = (made.metadata / "1.root.json").read_bytes()
        client = CatalogueClient(root, url, CatalogueStore(folder.parent / "car"))
        channel = Channel(Web(allow_loopback_http=True))
        now_ms = int(utc_now().timestamp() * 1000)
        return client.refresh(now_ms, lambda one, most: fetch_file(channel, one, most), lambda _: None)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_from_the_first_day_to_a_stolen_key(folder: Path, tmp_path: Path) -> None:
    package = put(tmp_path / "packages", "ocr")
    assert main(["catalogue", "add", str(folder), "--package", str(package)]) == 0
    wheel = tmp_path / "driveway_agent-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    assert main(["catalogue", "add", str(folder), "--release", str(wheel), "--version", "0.1.0"]) == 0
    policy = tmp_path / "family.toml"
    policy.write_text("[policy]\nreserve_percent = 45\n")
    named = ["--name", "family", "--version", "1.0"]
    assert main(["catalogue", "add", str(folder), "--policy", str(policy), *named]) == 0
    for epoch in (1, 2):
        signer = FileSigner.open_or_create(tmp_path / f"dispatcher-{epoch}.key")
        public = tmp_path / f"dispatcher-{epoch}.pub"
        public.write_text(signer.public_key_pem())
        arguments = ["--dispatcher", str(public), "--name", "d1", "--epoch", str(epoch)]
        assert main(["catalogue", "add", str(folder), *arguments]) == 0
    found = believed(folder)
    assert [one.name for one in (*found.packages, *found.policies, *found.releases)] == [
        "ocr",
        "family",
        "driveway-agent",
    ]
    assert found.dispatchers is not None
    assert (found.dispatchers.minimum_epoch, len(found.dispatchers.keys)) == (1, 2)

    for role in ("packages", "targets", "timestamp", "root"):
        assert main(["catalogue", "rotate", str(folder), "--role", role]) == 0
    assert main(["catalogue", "deny", str(folder), "--dispatcher", signer.keyid, "--why", "stolen"]) == 0
    assert main(["catalogue", "withdraw", str(folder), "--target", "packages/ocr/1/manifest.json"]) == 0
    after = believed(folder)
    assert (after.packages, after.denied.number) == ((), 1)
    assert [one.what for one in after.denied.dispatchers] == [signer.keyid]
    assert main(["catalogue", "deny", str(folder), "--dispatcher", signer.keyid, "--lift"]) == 0
    assert (believed(folder).denied.number, believed(folder).denied.dispatchers) == (2, ())


def test_a_version_is_taken_off_the_deny_list_however_it_is_spelled(folder: Path) -> None:
    for spelled in ("1.4", "1.4.0"):
        assert main(["catalogue", "deny", str(folder), "--agent", spelled]) == 0
    assert [one.what for one in believed(folder).denied.agents] == ["1.4.0"]
    assert main(["catalogue", "deny", str(folder), "--agent", "1.4", "--lift"]) == 0
    assert believed(folder).denied.agents == ()


def test_a_new_timestamp_needs_the_online_keys_alone(folder: Path, tmp_path: Path) -> None:
    before = believed(folder).versions
    (folder / "keys" / "offline").rename(tmp_path / "safe")
    assert main(["catalogue", "sign", str(folder), "--good-for", "30"]) == 0
    after = believed(folder)
    assert (after.versions.timestamp, after.versions.root) == (before.timestamp + 1, before.root)
    assert after.expires_ms - after.signed_ms == 30 * 86_400_000


def test_what_needs_a_key_that_is_elsewhere_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "keys" / "offline").rename(tmp_path / "safe")
    assert main(["catalogue", "deny", str(folder), "--agent", "0.0.1"]) == 1
    assert "targets needs 1 of its 1 keys, and 0 are here" in capsys.readouterr().err


def test_what_is_in_it_can_be_shown(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    assert main(["catalogue", "show", str(folder), "--json", str(figures)]) == 0
    shown = json.loads(figures.read_text())
    assert shown["roles"]["root"]["version"] == 1
    assert set(shown["targets"]) == {"targets", "packages", "policies", "dispatchers", "releases"}
    assert "timestamp    v1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "C"], "give one of"),
        (["add", "C", "--policy", "p.toml"], "a policy needs --name and --version"),
        (["add", "C", "--dispatcher", "k.pub", "--name", "d"], "a dispatcher needs --epoch"),
        (["deny", "C"], "give one of"),
        (["deny", "C", "--agent", "1", "--package", "ab"], "give one of"),
        (["sign", "C", "--good-for", "32"], "takes 1 to 31 days"),
        (["rotate", "C", "--role", "nobody"], "invalid choice"),
    ],
)
def test_what_does_not_go_together_is_a_matter_of_usage(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["catalogue", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["init", "C"], "has a catalogue already"),
        (["withdraw", "C", "--target", "packages/x/1/manifest.json"], "the catalogue has no packages/x/1"),
        (["withdraw", "C", "--target", "../x"], "is no name of a target"),
        (["withdraw", "C", "--target", "deny.json"], "is never withdrawn"),
        (["deny", "C", "--agent", "0.0.1", "--lift"], "is not on the deny list"),
        (["deny", "C", "--agent", "no version!"], "is no version"),
        (["show", "C/nowhere"], "has no"),
    ],
)
def test_what_cannot_be_done_is_told(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["catalogue", *(one.replace("C", str(folder), 1) if one[0] == "C" else one for one in arguments)]) == 1
    assert said in capsys.readouterr().err


def test_what_is_served_is_what_is_published_and_no_key(folder: Path) -> None:
    server = server_of(Repository(folder), 0)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with urllib.request.urlopen(f"{url}/metadata/timestamp.json") as answer:
            assert answer.status == 200
        for path in ("/keys/online/timestamp-1.pem", "/../keys/online/timestamp-1.pem", "/%2e%2e/keys"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(url + path)
            refused.value.close()
            assert refused.value.code == 404
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_keys_are_for_their_owner_alone(folder: Path) -> None:
    keys = list((folder / "keys").rglob("*.pem"))
    assert len(keys) == 10
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
