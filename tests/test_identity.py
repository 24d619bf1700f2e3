"""The first start makes a key and a real dispatcher enrols it; later starts ask nobody; strangers are not believed."""

from __future__ import annotations

import asyncio
import shutil
import stat
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from agent.config import Config, load
from agent.errors import ConfigError, FleetError, TrustError
from agent.fleet.enrolment_messages import ENROLMENT_TYPE, Enrolled
from agent.fleet.messages import GRANT_TYPE, decode, encode
from agent.fleet.tls import TlsFiles, credential
from agent.identity import Identity, establish, read_key
from agent.key_config import KeySection, TpmSection
from agent.trust import dsse
from agent.trust.keys import FileSigner, KeyAbsentError
from agent.trust.pkcs11 import Pkcs11Place
from hil.certificates import CA_NAME, Authority
from hil.dispatcher.objects import Objects
from hil.dispatcher.web import WebServer
from hil.emulated_keys import EmulatedTpm
from tests.hil.honest_car import Desk, new_signer
from tests.trust.hardware_keys import needs_swtpm

CODE = "one-time"
UNIT = "car-0001"

Answer = TypeVar("Answer")


class Office:
    """A dispatcher behind its own web server. Its book belongs to one thread; `asked` counts what units said."""

    def __init__(self, folder: Path) -> None:
        self.asked = 0
        self._thread = ThreadPoolExecutor(1)
        self.desk = self.on_thread(lambda: Desk(folder))
        self.on_thread(lambda: self.desk.book.units.add_code(CODE))
        self.web = WebServer(0, self.desk.objects, self._enrol, rotate=self._rotate)
        self.web.start()

    def _enrol(self, envelope: bytes) -> bytes:
        self.asked += 1
        return self.on_thread(lambda: self.desk.enrol(envelope))

    def _rotate(self, body: bytes) -> bytes:
        self.asked += 1
        return self.on_thread(lambda: self.desk.service.rotate(body))

    def on_thread(self, call: Callable[[], Answer]) -> Answer:
        return self._thread.submit(call).result()

    def enrolled(self, unit: str) -> tuple[str, str, str] | None:
        """(key id, protection, cell) of a unit in the book."""
        known = self.on_thread(lambda: self.desk.book.units.get(unit))
        return None if known is None else (known.keyid, known.key_protection, known.cell)

    def close(self) -> None:
        self.web.close()
        self.on_thread(self.desk.book.close)
        self._thread.shutdown()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path / "dispatcher")
    yield office
    office.close()


@pytest.fixture
def car(tmp_path: Path) -> Path:
    """The folder of the car's configuration."""
    folder = tmp_path / "car"
    folder.mkdir()
    return folder


def configure(car: Path, dispatcher: FileSigner, *fleet: str) -> Config:
    """A configuration that trusts this dispatcher, with more lines for its fleet section."""
    (car / "dispatcher.pub").write_text(dispatcher.public_key_pem())
    (car / "agent.toml").write_text(
        f"""
        state_dir = "deep/state"
        control_socket = "control.sock"
        unit = {{ id = "{UNIT}", cell = "cell-of-the-file" }}
        vehicle.profiles = ["tesla-model3"]
        vehicle.bus = [{{ name = "party", interface = "socketcan", channel = "can0" }}]
        inference = {{ packages_dir = "packages", publisher_key = "publisher.pub" }}
        [fleet]
        brokers = ["127.0.0.1:1883"]
        dispatcher_key = "dispatcher.pub"
        """
        + "\n".join(fleet)
    )
    return load(car / "agent.toml")


def enrolling(car: Path, office: Office, *, code: str = CODE, trusted: FileSigner | None = None) -> Config:
    """A configuration that enrols with this dispatcher."""
    url, key = f"{office.web.url}/enrol", trusted or office.desk.key
    return configure(car, key, f'enrol_url = "{url}"', f'enrol_code = "{code}"', "allow_loopback_http = true")


def start(config: Config) -> Identity:
    return asyncio.run(establish(config))


def state(car: Path) -> Path:
    return car / "deep" / "state"


# --- enrolment -------------------------------------------------------------------------------------------------


def test_the_first_start_makes_a_key_and_enrols_it(car: Path, office: Office) -> None:
    identity = start(enrolling(car, office))
    assert office.enrolled(UNIT) == (identity.signer.keyid, "file", identity.cell)
    assert identity.cell != "cell-of-the-file"
    assert dict(identity.dispatcher_keys) == {office.desk.key.keyid: office.desk.key.public_key()}
    assert identity.tls is None
    assert identity.web.allow_loopback_http
    kept_files = sorted(path.name for path in state(car).iterdir() if "sealing" not in path.name)
    assert kept_files == ["enrolled.json", "unit.key"]
    assert stat.S_IMODE(state(car).stat().st_mode) == 0o700
    kept = decode((state(car) / "enrolled.json").read_bytes(), Enrolled)
    assert kept == Enrolled(unit=UNIT, cell=identity.cell, keyid=identity.signer.keyid)


def test_the_second_start_asks_nobody(car: Path, office: Office) -> None:
    config = enrolling(car, office)
    first, second = start(config), start(config)
    assert (second.signer.keyid, second.cell) == (first.signer.keyid, first.cell)
    assert office.asked == 1


def test_a_wrong_code_is_refused_with_the_dispatchers_reason_and_a_right_one_mends_it(
    car: Path, office: Office
) -> None:
    with pytest.raises(FleetError, match=r"refused to enrol this unit \(403\): .*the enrolment code is not known"):
        start(enrolling(car, office, code="guess"))
    assert office.enrolled(UNIT) is None
    assert not (state(car) / "enrolled.json").exists()
    key = (state(car) / "unit.key").read_bytes()
    start(enrolling(car, office))
    assert (state(car) / "unit.key").read_bytes() == key


def test_an_answer_by_a_stranger_is_not_believed(car: Path, office: Office) -> None:
    with pytest.raises(TrustError, match="no signature on the envelope was made by a trusted key"):
        start(enrolling(car, office, trusted=new_signer()))
    assert office.asked == 1
    assert not (state(car) / "enrolled.json").exists()


@pytest.mark.parametrize("kind", ["another unit's", "another key's", "another type"])
def test_a_signed_answer_to_another_question_is_not_believed(car: Path, tmp_path: Path, kind: str) -> None:
    """Whoever stands between may replay what the dispatcher once signed."""
    dispatcher = new_signer()

    def replay(envelope: bytes) -> bytes:
        keyid = msgspec.json.decode(envelope)["signatures"][0]["keyid"]
        unit = "car-9" if kind == "another unit's" else UNIT
        answer = Enrolled(unit=unit, cell="00", keyid="ab" * 32 if kind == "another key's" else keyid)
        return dsse.sign(GRANT_TYPE if kind == "another type" else ENROLMENT_TYPE, encode(answer), dispatcher)

    web = WebServer(0, Objects(tmp_path / "objects"), replay)
    web.start()
    try:
        config = configure(car, dispatcher, f'enrol_url = "{web.url}/enrol"', "allow_loopback_http = true")
        with pytest.raises((FleetError, TrustError), match=r"not this unit 'car-0001'|the envelope holds a"):
            start(config)
    finally:
        web.close()
    assert not (state(car) / "enrolled.json").exists()


def test_plain_http_to_the_dispatcher_needs_leave(car: Path, office: Office) -> None:
    config = configure(car, office.desk.key, f'enrol_url = "{office.web.url}/enrol"')
    with pytest.raises(FleetError, match=r"^will not fetch http://127"):
        start(config)
    assert office.asked == 0


def test_a_unit_that_does_not_enrol_goes_to_the_cell_of_its_configuration(car: Path) -> None:
    config = configure(car, new_signer())
    identity = start(config)
    assert identity.cell == "cell-of-the-file"
    assert not identity.web.allow_loopback_http
    assert start(config).signer.keyid == identity.signer.keyid
    assert [path.name for path in state(car).iterdir() if "sealing" not in path.name] == ["unit.key"]


# --- what was kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda _kept: b"", "is damaged: not a valid Enrolled"),
        (lambda kept: encode(kept)[:-5], "is damaged: not a valid Enrolled"),
        (lambda kept: encode(kept).replace(b'"v":1', b'"v":2'), "is damaged: version 2 is not spoken here"),
        (lambda kept: encode(msgspec.structs.replace(kept, unit="car-9")), "is for another unit or key"),
        (lambda kept: encode(msgspec.structs.replace(kept, keyid="ab" * 32)), "is for another unit or key"),
    ],
)
def test_what_was_kept_of_the_enrolment_must_be_whole_and_this_units(
    car: Path, office: Office, spoil: Callable[[Enrolled], bytes], said: str
) -> None:
    config = enrolling(car, office)
    first = start(config)
    done = state(car) / "enrolled.json"
    done.write_bytes(spoil(decode(done.read_bytes(), Enrolled)))
    with pytest.raises(TrustError) as error:
        start(config)
    assert str(error.value).startswith(f"{done} {said}")
    assert "; remove it to enrol" in str(error.value)
    assert office.asked == 1
    done.unlink()  # as the hint says
    assert start(config).cell == first.cell
    assert office.asked == 2


# --- files that the configuration names ------------------------------------------------------------------------


def test_a_missing_dispatcher_key_is_named(car: Path) -> None:
    config = configure(car, new_signer())
    (car / "dispatcher.pub").unlink()
    with pytest.raises(ConfigError, match=r"^fleet.dispatcher_key: cannot use the public key .*/car/dispatcher.pub: "):
        start(config)


def test_a_key_file_that_is_no_text_is_named_by_its_own_key(car: Path) -> None:
    config = configure(car, new_signer())
    (car / "publisher.pub").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"^inference.publisher_key: cannot use the public key .*/publisher.pub: "):
        read_key(config, config.inference.publisher_key, "inference.publisher_key")


def test_a_dispatcher_key_that_is_none_is_named(car: Path) -> None:
    config = configure(car, new_signer())
    (car / "dispatcher.pub").write_text("dispatcher")
    with pytest.raises(ConfigError, match=r"^fleet.dispatcher_key: .*/car/dispatcher.pub: not a public key in PEM"):
        start(config)


def test_a_state_directory_that_cannot_be_made_is_named(car: Path) -> None:
    config = configure(car, new_signer())
    (car / "deep").write_text("a file in its way")
    with pytest.raises(ConfigError, match=r"^state_dir: cannot make .*/deep/state: Not a directory"):
        start(config)


TLS = 'tls = { ca = "tls/ca.pem", certificate = "tls/unit.pem", key = "tls/unit.key" }'


def test_the_tls_files_are_found_beside_the_configuration(
    car: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(car, new_signer(), TLS)
    files = Authority(car / "tls").issue("unit")
    monkeypatch.chdir(tmp_path)
    identity = start(config)
    assert identity.tls == files
    assert CA_NAME in str(identity.web.context().get_ca_certs())


def without(name: str) -> Callable[[Path], None]:
    return lambda tls: (tls / name).unlink()


@pytest.mark.parametrize(
    "spoil",
    [
        without("ca.pem"),
        without("unit.pem"),
        without("unit.key"),
        lambda tls: (tls / "ca.pem").write_text("no certificate"),
        lambda tls: shutil.copy(Authority(tls / "of another").issue("unit").key, tls / "unit.key"),
    ],
)
def test_tls_files_that_cannot_be_used_are_named(car: Path, spoil: Callable[[Path], object]) -> None:
    config = configure(car, new_signer(), TLS)
    Authority(car / "tls").issue("unit")
    spoil(car / "tls")
    with pytest.raises(ConfigError, match=r"^fleet.tls: .*/car/tls/ca.pem, .*unit.pem or .*unit.key cannot be used: "):
        start(config)


def test_a_tls_file_may_be_what_the_service_manager_unsealed(
    car: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(car, new_signer(), TLS.replace("tls/unit.key", "credential:tls.key"))
    files = Authority(car / "tls").issue("unit")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match=r"'tls.key': the service manager gave this process none"):
        start(config)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    with pytest.raises(ConfigError, match=r"/credentials/tls.key cannot be used: .*No such file"):
        start(config)
    shutil.move(files.key, credentials / "tls.key")
    assert start(config).tls == TlsFiles(ca=files.ca, certificate=files.certificate, key=str(credentials / "tls.key"))


@pytest.mark.parametrize("name", ["", ".", "..", "../unit.key", "/etc/passwd"])
def test_what_is_no_credentials_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is no credential's name"):
        credential(name)


# --- a key in hardware -----------------------------------------------------------------------------------------


def in_tpm(config: Config, tpm: EmulatedTpm) -> Config:
    key = KeySection(backend="tpm", tpm=TpmSection(device=tpm.address, limit_s=1.0))
    return msgspec.structs.replace(config, trust=msgspec.structs.replace(config.trust, key=key))


@needs_swtpm
def test_a_key_in_a_tpm_is_enrolled_as_what_it_is_and_needs_the_tpm_no_more_to_start(
    car: Path, office: Office, tmp_path: Path
) -> None:
    with EmulatedTpm(tmp_path / "emulated") as tpm:
        config = in_tpm(enrolling(car, office), tpm)
        first = start(config)
        assert office.enrolled(UNIT) == (first.key.keyid, "ftpm", first.cell)
    assert sorted(path.name for path in state(car).iterdir() if "sealing" not in path.name) == [
        "enrolled.json",
        "unit-key.json",
    ]
    later = start(config)
    assert (later.key.keyid, later.signer.keyid, later.cell) == (first.key.keyid, first.key.keyid, first.cell)
    assert office.asked == 2, "the evidence, and the secret that the TPM opened"
    with pytest.raises(KeyAbsentError):
        asyncio.run(later.key.sign(b"x"))


@needs_swtpm
def test_without_its_tpm_a_unit_cannot_be_enrolled_and_says_so(car: Path, office: Office, tmp_path: Path) -> None:
    with EmulatedTpm(tmp_path / "emulated") as tpm:
        config = in_tpm(enrolling(car, office), tpm)
    with pytest.raises(KeyAbsentError, match="no TPM answers"):
        start(config)
    assert (office.asked, list(state(car).iterdir())) == (0, [])


def test_the_configuration_says_where_the_key_is(car: Path) -> None:
    config = configure(
        car,
        new_signer(),
        "[trust.key]",
        'backend = "pkcs11"',
        '[trust.key.tpm]\nhandle = 0x81000123\nkind = "tpm"\nowner_auth_file = "auth"',
        '[trust.key.pkcs11]\nmodule = "/usr/lib/p11.so"\ntoken = "car"\npin_file = "pin"',
    )
    assert config.key.backend == "pkcs11"
    assert config.key.file == state(car) / "unit.key"
    assert (config.key.tpm.handle, config.key.tpm.kind, config.key.tpm.owner_auth_file) == (
        0x81000123,
        "tpm",
        car / "auth",
    )
    assert config.key.pkcs11 == Pkcs11Place(
        module=Path("/usr/lib/p11.so"), token="car", key="driveway", pin_file=car / "pin"
    )
    assert configure(car, new_signer()).key.backend == "file"


def test_the_documented_section_loads_and_shows_the_tpms_defaults(car: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "keys.md").read_text("utf-8")
    section = page[page.index("    [trust.key]\n") :].partition("\n| `protection`")[0]
    documented = configure(car, new_signer(), textwrap.dedent(section)).trust.key
    assert documented.backend == "tpm"
    assert documented.tpm == TpmSection()
    assert documented.pkcs11 is not None
    assert documented.pkcs11.key == "driveway"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ('[trust.key]\nbackend = "cloud"', "trust.key.backend"),
        ('[trust.key]\nbackend = "pkcs11"', r"needs a \[trust.key.pkcs11\] section"),
        ("[trust.key.tpm]\nhandle = 0x81800000", "trust.key.tpm.handle"),
        ("[trust.key.tpm]\nlimit_s = 0", "trust.key.tpm.limit_s"),
        ("[trust.key.tpm]\nhandel = 1", "did you mean trust.key.tpm.handle"),
        ('[trust.key.pkcs11]\nmodule = "m"\ntoken = "t"', "pin_file"),
    ],
)
def test_a_mistake_about_the_key_is_named(car: Path, section: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configure(car, new_signer(), section)
