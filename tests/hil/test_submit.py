"""`driveway-hil submit` against a real dispatcher service over HTTP, with an honest car that does the work."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest

from agent.core.model import Verdict, YieldReason
from agent.fleet.messages import JobGrant
from agent.package import MANIFEST, Bucket, Golden, Limits, Manifest, OpCall, PipelineSpec, encode_manifest
from agent.trust.keys import FileSigner
from agent.wire import decode_input
from hil import cli
from hil.dispatcher.book import Book
from hil.dispatcher.job_verdict import verify_job_verdict
from hil.dispatcher.jobs_api import JobOrder, JobsApi
from hil.dispatcher.web import WebServer
from hil.packages.tensors import build_tensor_package, item_of
from hil.submit import send
from hil.submit.client import Client
from hil.submit.record import Record, record_folder
from tests.hil.honest_car import Car, Desk, new_signer
from tests.hil.tiny_models import add_model, softmax_model

TOKEN = "a-secret-of-the-operator"
PNG = b"\x89PNG\r\n\x1a\n"
T = TypeVar("T")


class Reader(Car):
    """Answers each item with what it holds, in the words of a package; one that says `bad` is no good."""

    inputs: Callable[[str], bytes]

    def answers(self, grant: JobGrant, index: int) -> bytes:
        items = decode_input(self.inputs(grant.input.sha256))
        first = index * grant.slice_items
        return msgspec.json.encode(
            [
                {"error": "unreadable", "text": None} if b"bad" in item else {"text": hashlib.sha256(item).hexdigest()}
                for item in items[first : first + grant.slice_items]
            ]
        )


class Bench:
    """A dispatcher that listens, an image package, and a car that holds it; one thread at a time has the book."""

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk, self.folder, self.lock = desk, folder, threading.Lock()
        self.web = WebServer(
            0, desk.objects, desk.enrol, token=TOKEN, more=JobsApi(desk.objects, self.on_book, TOKEN, desk.key)
        )
        self.web.start()
        self.token_file = folder / "operator.token"
        self.token_file.write_text(TOKEN + "\n")
        self.package = image_package(folder / "images-package")
        self.where = ["--url", self.web.url, "--token-file", str(self.token_file)]
        desk.book.units.add_code("welcome")
        self.car = Reader(desk, "car-1", "welcome")
        self.car.inputs = lambda sha256: (desk.objects.folder / sha256).read_bytes()

    def on_book(self, question: Callable[[Book], T]) -> T:
        with self.lock:
            return question(self.desk.book)

    def submit(self, *arguments: str | Path) -> int:
        return cli.main(["submit", *(str(one) for one in arguments), *self.where])

    def work(self, package: Path | None = None) -> int:
        """The car does all there is; how many leases."""
        sha256 = hashlib.sha256(((package or self.package) / MANIFEST).read_bytes()).hexdigest()
        with self.lock:
            leases = 0
            while (grant := self.car.request(packages=(sha256,))) is not None:
                assert self.car.hand_in(self.car.result(grant)).verdict is Verdict.SETTLED
                leases += 1
            return leases


def image_package(folder: Path) -> Path:
    """A package of images, as far as its manifest is concerned."""
    (folder / "golden").mkdir(parents=True)
    files = {"model.onnx": b"onnx", "golden/input": b"\x90", "golden/expected.json": b"[]"}
    for name, body in files.items():
        (folder / name).write_bytes(body)
    manifest = Manifest(
        v=1,
        name="reads",
        version="1",
        input="image",
        model="model.onnx",
        pipeline=PipelineSpec(pre=(OpCall(op="resize"),), engine="onnx", post=(OpCall(op="decode"),)),
        buckets=(Bucket(items=1, width=320),),
        golden=Golden(input="golden/input", expected="golden/expected.json", tolerance_permille=10),
        limits=Limits(max_item_bytes=1000, max_items=10, memory_mb=256),
        files={name: hashlib.sha256(body).hexdigest() for name, body in files.items()},
    )
    (folder / MANIFEST).write_bytes(encode_manifest(manifest))
    return folder


@pytest.fixture
def bench(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("hil.submit.client.PAUSE_S", 0.001)
    made = Bench(desk, tmp_path)
    yield made
    made.web.close()


def images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03d}.png").write_bytes(PNG + b"%d" % number)
    return folder


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def name_in(text: str) -> str:
    return text.partition("--collect ")[2].split()[0]


def test_a_folder_now_and_its_answers_later(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "JOB_ITEMS", 4)
    folder = images(tmp_path / "in", 10)
    (folder / "003.png").write_bytes(PNG + b"bad")
    (folder / "notes.txt").touch()
    assert bench.submit(folder, "--package", bench.package, "--slice-items", "3", "--price", "0.5") == 0
    said = capsys.readouterr()
    assert "1 other file left out: not .jpeg or .jpg or .png" in said.err
    assert "10 items in 3 jobs" in said.err
    assert "no car has said yet that it holds reads" in said.err
    name = name_in(said.err)

    out, figures = tmp_path / "out.jsonl", tmp_path / "figures.json"
    assert cli.main(["submit", "--collect", name, "--out", str(out)]) == 1
    assert "0 of 10 items are over so far; collect with: driveway-hil submit --collect" in capsys.readouterr().err
    assert lines(out) == []

    assert bench.work() == 3
    assert cli.main(["submit", "--collect", name, "--out", str(out), "--json", str(figures)]) == 1
    assert f"1 of 10 items failed:\n  {folder}/003.png: unreadable" in capsys.readouterr().err
    written = lines(out)
    assert [one["file"] for one in written] == [str(path) for path in sorted(folder.glob("*.png"))]
    assert written[3] == {"file": str(folder / "003.png"), "error": "unreadable"}
    assert written[9]["answer"] == {"text": hashlib.sha256(PNG + b"9").hexdigest()}
    report = json.loads(figures.read_text())
    assert (report["items"], report["answered"], report["failed"], report["complete"]) == (10, 9, 1, True)
    assert (report["paid"], report["currency"]) == (4.5, "USD")
    assert report["failed_items"] == [{"file": str(folder / "003.png"), "error": "unreadable"}]


def test_signed_verdicts_are_kept_beside_the_answers(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out, key = images(tmp_path / "in", 5), tmp_path / "out.jsonl", tmp_path / "dispatcher.pub"
    verdicts = tmp_path / "out.jsonl.verdicts.jsonl"
    key.write_text(bench.desk.key.public_key_pem())
    assert bench.submit(folder, "--package", bench.package, "--slice-items", "2", "--dispatcher-key", key) == 0
    name = name_in(capsys.readouterr().err)
    assert cli.main(["submit", "--collect", name, "--out", str(out)]) == 1
    assert verdicts.read_text() == "", "nothing is said of a job that is not over"
    bench.work()
    assert cli.main(["submit", "--collect", name, "--out", str(out)]) == 0
    (line,) = verdicts.read_bytes().splitlines()
    said = verify_job_verdict(line, {bench.desk.key.keyid: bench.desk.key.public_key()})
    assert (said.job, said.job_slices, [one.items for one in said.slices]) == (f"{name}-0", 3, [2, 2, 1])
    key.write_text(new_signer().public_key_pem())
    assert cli.main(["submit", "--collect", name, "--out", str(out)]) == 1
    assert "verdict on" in capsys.readouterr().err


def test_waiting_for_a_car(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = images(tmp_path / "in", 5), tmp_path / "out.jsonl"
    ended = threading.Event()

    def drive() -> None:
        while not ended.is_set():
            bench.work()
            ended.wait(0.01)

    def wait(_seconds: float) -> None:
        assert car.is_alive(), "the car is gone: there is nothing to wait for"
        ended.wait(0.01)

    car = threading.Thread(target=drive)
    car.start()
    monkeypatch.setattr("hil.submit.collect.sleep", wait)
    try:
        assert bench.submit(folder, "--package", bench.package, "--wait", "--out", out) == 0
    finally:
        ended.set()
        car.join()
    assert len(lines(out)) == 5
    assert "computed 5 of 5" in capsys.readouterr().err


def test_what_is_done_of_a_dead_job_is_kept(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = images(tmp_path / "in", 6), tmp_path / "out.jsonl"
    bench.submit(folder, "--package", bench.package, "--slice-items", "2")
    name = name_in(capsys.readouterr().err)
    sha256 = hashlib.sha256((bench.package / MANIFEST).read_bytes()).hexdigest()
    grant = bench.car.request(packages=(sha256,))
    assert grant is not None
    bench.car.hand_in(bench.car.yielded(grant, slices=(1,)))
    bench.desk.book.database.execute("UPDATE jobs SET state = 'dead'")
    assert cli.main(["submit", "--collect", name, "--out", str(out)]) == 1
    written = lines(out)
    assert ["answer" in one for one in written] == [False, False, True, True, False, False]
    assert written[0]["error"].startswith("its job is dead")


def test_why_a_job_died_is_told(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.submit(images(tmp_path / "in", 1), "--package", bench.package)
    name = name_in(capsys.readouterr().err)
    sha256 = hashlib.sha256((bench.package / MANIFEST).read_bytes()).hexdigest()
    grant = bench.car.request(packages=(sha256,))
    assert grant is not None
    given_back = msgspec.structs.replace(bench.car.yielded(grant, why=YieldReason.FAULT), detail="it burns")
    bench.car.hand_in(given_back)
    bench.desk.book.database.execute("UPDATE jobs SET state = 'dead'")
    assert cli.main(["submit", "--collect", name]) == 1
    assert "its job is dead: fault: it burns" in capsys.readouterr().out


def test_ctrl_c_leaves_the_jobs_and_says_how_to_collect(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = images(tmp_path / "in", 3), tmp_path / "out.jsonl"

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hil.submit.collect.sleep", interrupted)
        assert bench.submit(folder, "--package", bench.package, "--wait", "--out", out) == 130
    said = capsys.readouterr().err
    assert "the jobs go on; collect with: driveway-hil submit --collect" in said
    assert not out.exists()
    assert bench.work() == 1
    assert cli.main(["submit", "--collect", name_in(said), "--out", str(out)]) == 0
    assert len(lines(out)) == 3


def test_a_submission_that_was_broken_off_is_collected_as_far_as_it_came(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "JOB_ITEMS", 2)
    folder, out = images(tmp_path / "in", 6), tmp_path / "out.jsonl"
    put_up = Client.put_up
    orders: list[str] = []

    def second_fails(client: Client, order: JobOrder) -> Any:
        orders.append(order.job)
        if len(orders) == 2:
            raise KeyboardInterrupt
        return put_up(client, order)

    with monkeypatch.context() as patch:
        patch.setattr(Client, "put_up", second_fails)
        assert bench.submit(folder, "--package", bench.package) == 130
    said = capsys.readouterr().err
    assert "broken off: what was sent goes on" in said
    name = name_in(said)
    assert (Record(record_folder(), name).jobs, Record(record_folder(), name).complete) == (2, False)
    assert bench.work() == 1
    assert cli.main(["submit", "--collect", name, "--out", str(out)]) == 1
    assert "2 of 6 files were never sent" in capsys.readouterr().err
    assert [one.get("error", "") for one in lines(out)] == ["", ""] + [
        "the submission was broken off before it was put up"
    ] * 2


def test_tensors(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(add_model(2))
    package = build_tensor_package(tmp_path / "model.onnx", tmp_path / "package").path
    one, two = np.array([1, 2], np.float32), np.array([3, 4], ">f4")
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "x.npz", a=one, b=two, more=np.zeros(9))
    assert bench.submit(tmp_path / "in", "--package", package) == 0
    name = name_in(capsys.readouterr().err)
    assert bench.work(package) == 1
    assert cli.main(["submit", "--collect", name, "--out", str(tmp_path / "out.jsonl")]) == 0
    expected = hashlib.sha256(item_of([one, two.astype("<f4")])).hexdigest()
    assert [line["answer"] for line in lines(tmp_path / "out.jsonl")] == [{"text": expected}]


def test_a_model_is_packaged_signed_and_put_on_the_rigs_shelf(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = tmp_path / "rig"
    (rig / "dispatcher").mkdir(parents=True)
    (rig / "dispatcher" / "ready").write_bytes(msgspec.json.encode({"http_url": bench.web.url}))
    (rig / "dispatcher" / "operator.token").write_text(TOKEN)
    (tmp_path / "soft.onnx").write_bytes(softmax_model(None, 2))
    np.save(tmp_path / "x.npy", np.zeros(2, np.float32))
    said = ["submit", str(tmp_path / "x.npy"), "--package", str(tmp_path / "soft.onnx"), "--dir", str(rig)]
    assert cli.main(said) == 1
    assert "has no publisher's key" in capsys.readouterr().err
    FileSigner.open_or_create(rig / "publisher.key")
    assert cli.main(said) == 0
    assert cli.main(said) == 0
    (made,) = (rig / "packages").iterdir()
    assert (made / "manifest.sig.json").is_file()
    assert json.loads((made / "golden" / "expected.json").read_text()) == [{"outputs": {"y": [0.5, 0.5]}}]
    assert bench.work(made) == 2
    assert list(rig.glob(".package-*")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["empty", "--package", "PACKAGE"], "there is nothing to send in empty; it needs files that end in .jpeg"),
        (["nowhere", "--package", "PACKAGE"], "there is no nowhere; give a folder, or files"),
        (["text.png", "--package", "PACKAGE"], "text.png is not an image; the package takes PNG and JPEG files"),
        (["large.png", "--package", "PACKAGE"], "large.png has 1008 bytes, and the package takes 1000"),
        (
            ["good.png", "--package", "nothing-like-it"],
            "there is no package 'nothing-like-it'; give a package's folder",
        ),
        (["good.png", "--package", "model.onnx"], "model.onnx can be packaged only for a rig (--dir)"),
        (["good.png", "--package", "PACKAGE", "--json", "no/where"], "cannot write no/where: there is no folder no"),
        (["good.png", "--package", "PACKAGE", "--currency", "EUR", "--customer", "a b"], "refused (400): not a job"),
    ],
)
def test_wrong_input_is_answered_in_one_sentence(
    bench: Bench, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.folder)
    (bench.folder / "empty").mkdir()
    for name, body in {"good": b"", "large": b"x" * 1000}.items():
        (bench.folder / f"{name}.png").write_bytes(PNG + body)
    (bench.folder / "text.png").write_text("hello")
    assert bench.submit(*(str(bench.package) if one == "PACKAGE" else one for one in arguments)) == 1
    error = capsys.readouterr().err
    assert f"driveway-hil: {said}" in error or said in error
    assert bench.desk.book.database.rows("SELECT job FROM jobs") == []


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("wide.npy", "wide.npy holds float64 (2,); the package takes x: float32 (2,)"),
        ("long.npy", "long.npy holds float32 (3,); the package takes x: float32 (2,)"),
        ("junk.npy", "junk.npy is not a tensor file; the package takes .npy and .npz files with x: float32 (2,)"),
        ("cut.npy", "cut.npy is not a readable .npy file"),
        ("pickled.npy", "pickled.npy is not a readable .npy file"),
        ("other.npz", "other.npz has no array 'x'"),
        ("bomb.npz", "bomb.npz: 'x' is larger than the model takes"),
        ("broken.npz", "broken.npz is not a readable .npz file"),
    ],
)
def test_a_file_that_is_no_tensor_of_the_model_is_named(
    bench: Bench, file: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.folder)
    Path("soft.onnx").write_bytes(softmax_model(None, 2))
    package = build_tensor_package(Path("soft.onnx"), Path("package")).path
    np.save("wide.npy", np.zeros(2))
    np.save("long.npy", np.zeros(3, np.float32))
    np.save("good.npy", np.zeros(2, np.float32))
    np.save("pickled.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    Path("junk.npy").write_text("junk")
    Path("cut.npy").write_bytes(Path("good.npy").read_bytes()[:100])
    np.savez("other.npz", y=np.zeros(2, np.float32))
    np.savez_compressed("bomb.npz", x=np.zeros(10_000_000, np.float32))
    Path("broken.npz").write_bytes(Path("other.npz").read_bytes()[:60])
    assert bench.submit("good.npy", file, "--package", package) == 1
    assert said in capsys.readouterr().err


def test_no_dispatcher_and_the_wrong_token(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.png").write_bytes(PNG)
    said = ["submit", str(tmp_path / "x.png"), "--package", str(bench.package)]
    assert cli.main([*said, "--dir", str(tmp_path)]) == 1
    assert "no dispatcher runs in" in capsys.readouterr().err
    assert cli.main([*said, "--url", "http://127.0.0.1:1", "--token-file", str(bench.token_file)]) == 1
    assert "the dispatcher at http://127.0.0.1:1 does not answer" in capsys.readouterr().err
    assert cli.main([*said, "--url", bench.web.url, "--token-file", str(tmp_path / "none")]) == 1
    assert "cannot read the operator's token" in capsys.readouterr().err
    bench.token_file.write_text("wrong")
    assert bench.submit(tmp_path / "x.png", "--package", bench.package) == 1
    assert "the dispatcher does not know this operator's token; a dispatcher makes a new one" in capsys.readouterr().err
    assert not record_folder().exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x.png", "--dir", "rig"],
        ["x.png", "--package", "ocr"],
        ["x.png", "--package", "ocr", "--dir", "rig", "--url", "http://x"],
        ["x.png", "--package", "ocr", "--url", "http://x"],
        ["x.png", "--package", "ocr", "--url", "file:///etc/passwd", "--token-file", "x"],
        ["x.png", "--package", "ocr", "--dir", "rig", "--out", "x"],
        ["x.png", "--package", "ocr", "--dir", "rig", "--price", "-1"],
        ["x.png", "--package", "ocr", "--dir", "rig", "--price", "0.0000001"],
        ["x.png", "--package", "ocr", "--dir", "rig", "--ttl", "2d"],
        ["x.png", "--package", "ocr", "--dir", "rig", "--slice-items", "0"],
        ["x.png", "--package", "m.onnx", "--dir", "rig", "--shape", "x=a"],
        ["--collect", "subx", "x.png"],
    ],
)
def test_what_does_not_go_together_is_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["submit", *arguments])
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../../etc/passwd", "sub", "subnobody", "SUB1234"])
def test_a_submission_that_nobody_knows(bench: Bench, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "--collect", name]) == 1
    assert "no submission" in capsys.readouterr().err
