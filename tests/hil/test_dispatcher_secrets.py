"""What is nobody else's to read: the dispatcher's folder and files, and what it is told. And how it waits to start."""

from __future__ import annotations

import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hil.broker import EmbeddedBroker, free_port
from hil.dispatcher.book import Book
from hil.dispatcher.database import FILE
from hil.secret import write_secret
from tests.hil.honest_car import Car
from tests.hil.test_dispatcher_process import PATIENCE_S, DispatcherProcess, Remote


@pytest.fixture
def open_umask() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    return [str(path) for path in [folder, *folder.iterdir()] if path.stat().st_mode & 0o077]


@pytest.mark.usefixtures("open_umask")
def test_a_book_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    folder = tmp_path / "dispatcher"
    book = Book.open(folder, lambda: 0)
    book.units.add_code("code")
    assert {path.name for path in folder.iterdir()} == {FILE, f"{FILE}-wal", f"{FILE}-shm"}
    assert open_to_others(folder) == []
    for path in (folder / FILE, folder / f"{FILE}-wal", folder / f"{FILE}-shm"):  # as an older one left it
        path.chmod(0o644)
    again = Book.open(folder, lambda: 0)
    assert open_to_others(folder) == []
    again.close()
    book.close()


@pytest.mark.usefixtures("open_umask")
def test_a_secret_replaces_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    assert write_secret(path, "new").read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("open_umask")
def test_codes_come_from_a_file_and_the_folder_is_closed(tmp_path: Path) -> None:
    folder, codes = tmp_path / "dispatcher", write_secret(tmp_path / "codes", "first\n\n second \n")
    folder.mkdir(0o755)
    with EmbeddedBroker(tmp_path / "broker", free_port()) as broker:
        process = DispatcherProcess(folder, broker.port, "--enrol-code-file", str(codes))
        ready = process.start()
        try:
            assert folder.stat().st_mode & 0o777 == 0o700
            secret = [path for path in folder.glob("dispatcher.*") if path.suffix != ".pub"]
            assert [path.name for path in secret if path.stat().st_mode & 0o077] == []
            for unit, code in (("car-1", "second"), ("car-2", "first")):
                remote = Remote(unit, broker.port, ready, (folder / "dispatcher.pub").read_text())
                Car(remote, unit, code)
                remote.close()
        finally:
            process.kill()


def test_the_database_comes_from_a_file(tmp_path: Path) -> None:
    where = write_secret(tmp_path / "url", f"postgresql:///x?host={tmp_path}\n")
    command = [sys.executable, "-m", "hil.dispatcher", "--dir", str(tmp_path / "d"), "--broker", "127.0.0.1:1"]
    for more, said in (
        (("--database-file", str(where)), str(tmp_path)),
        (("--database-file", str(tmp_path / "none")), "cannot read"),
        (("--database-file", str(where), "--database", "postgresql:///y"), "two ways"),
    ):
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode != 0
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_it_waits_for_a_database_that_is_locked_and_says_so_once(tmp_path: Path) -> None:
    folder = tmp_path / "dispatcher"
    Book.open(folder, lambda: 0).close()
    holder = sqlite3.connect(folder / FILE, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    lines: queue.Queue[str] = queue.Queue()
    with EmbeddedBroker(tmp_path / "broker", free_port()) as broker:
        command = [*DispatcherProcess(folder, broker.port)._command]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        stream = process.stdout

        def read() -> None:
            for line in stream:
                lines.put(line)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert "waiting_for_the_database" in lines.get(timeout=PATIENCE_S)
            holder.execute("ROLLBACK")
            deadline_s = time.monotonic() + PATIENCE_S
            while not (folder / "ready").exists():
                assert time.monotonic() < deadline_s
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.wait()
            reader.join()
            stream.close()
            holder.close()
    assert not any("waiting" in line or "database_lost" in line for line in lines.queue)


def test_it_can_be_ended_while_it_waits(tmp_path: Path) -> None:
    folder = tmp_path / "dispatcher"
    Book.open(folder, lambda: 0).close()
    holder = sqlite3.connect(folder / FILE, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    process = subprocess.Popen(DispatcherProcess(folder, 1)._command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert "waiting_for_the_database" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        holder.close()
