"""Stand-ins for key hardware: a TPM by swtpm, and a PKCS#11 token by SoftHSM, each in a folder of its own.

Both are other people's programs (Debian: `swtpm`, `softhsm2`), so what passes here speaks what TPMs and tokens speak.
They keep their keys in files, and are as fast as the processor: what they cannot show is how slow hardware is.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.errors import TrustError
from agent.trust.pkcs11 import Pkcs11Place

START_S = 10.0
SOFTHSM_MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm.so")
TOKEN, PIN = "car", "1234"


class EmulatedTpm:
    """A TPM 2.0 in a process, served at `address`; what it keeps survives `stop` and `start`. A context manager."""

    def __init__(self, folder: Path, *, with_certificate: bool = False, for_tools: bool = False) -> None:
        """`with_certificate`: manufactured with an RSA endorsement certificate, by `authority`, which `root` certified.

        `for_tools`: served over TCP with a control channel besides, as tpm2-tools need it (`tcti`).
        """
        self._state, self._for_tools = folder / "tpm", for_tools
        self._state.mkdir(parents=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = _free_pair() if for_tools else 0
        self._socket = folder / "tpm.sock"
        self.authority = folder / "ca" / "issuercert.pem"
        self.root = folder / "ca" / "swtpm-localca-rootca-cert.pem"
        if with_certificate:
            self._manufacture(folder)

    @property
    def state(self) -> Path:
        """Where it keeps what it knows."""
        return self._state

    @property
    def address(self) -> str:
        """For `agent.trust.tpm_transport.opener`."""
        return f"tcp:127.0.0.1:{self._port}" if self._for_tools else f"unix:{self._socket}"

    @property
    def tcti(self) -> str:
        """For tpm2-tools (TPM2TOOLS_TCTI)."""
        return f"swtpm:host=127.0.0.1,port={self._port}"

    def start(self) -> None:
        """Power on; raises TrustError when swtpm does not come up."""
        if self._for_tools:
            channels = ["--server", f"type=tcp,port={self._port}", "--ctrl", f"type=tcp,port={self._port + 1}"]
        else:
            self._socket.unlink(missing_ok=True)
            channels = ["--server", f"type=unixio,path={self._socket}"]
        state = ["--tpm2", "--tpmstate", f"dir={self._state}", "--flags", "not-need-init,startup-clear"]
        null = subprocess.DEVNULL
        self._process = subprocess.Popen([_program("swtpm"), "socket", *state, *channels], stdout=null, stderr=null)
        until_s = time.monotonic() + START_S
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > until_s:
                self.stop()
                raise TrustError("swtpm did not come up")
            time.sleep(0.01)

    def stop(self) -> None:
        """Power off, without warning."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._socket.unlink(missing_ok=True)

    def hang(self, *, hanging: bool = True) -> None:
        """Stop answering, though everything stays open; or go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if hanging else signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _is_up(self) -> bool:
        if not self._for_tools:
            return self._socket.exists()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def _manufacture(self, folder: Path) -> None:
        """What a TPM's maker does: an endorsement key, certified by an authority that this makes for itself."""
        authority = folder / "ca"
        authority.mkdir()
        (folder / "localca.conf").write_text(
            f"statedir = {authority}\nsigningkey = {authority}/signkey.pem\nissuercert = {self.authority}\n"
            f"certserial = {authority}/certserial\n"
        )
        (folder / "localca.options").write_text("--platform-manufacturer Driveway\n--platform-version 2.1\n")
        (folder / "setup.conf").write_text(
            f"create_certs_tool = {_program('swtpm_localca')}\n"
            f"create_certs_tool_config = {folder}/localca.conf\n"
            f"create_certs_tool_options = {folder}/localca.options\n"
        )
        command = [_program("swtpm_setup"), "--tpm2", "--tpmstate", str(self._state), "--create-ek-cert"]
        done = subprocess.run([*command, "--config", str(folder / "setup.conf")], capture_output=True, check=False)
        if done.returncode:
            raise TrustError(f"swtpm_setup failed: {done.stdout.decode()[-300:]}{done.stderr.decode()[-300:]}")


def softhsm_module() -> Path | None:
    """SoftHSM's library, None where it is not installed."""
    return next((Path(path) for path in SOFTHSM_MODULES if Path(path).exists()), None)


def make_token(folder: Path) -> Pkcs11Place:
    """A fresh token in this folder, named by SOFTHSM2_CONF of this process; raises TrustError.

    SoftHSM reads its configuration when its module is first loaded, so a process has one folder of tokens.
    """
    module = softhsm_module()
    if module is None:
        raise TrustError("SoftHSM is not installed", hint="apt install softhsm2")
    tokens, configuration, pin_file = folder / "tokens", folder / "softhsm2.conf", folder / "pin"
    tokens.mkdir(parents=True)
    configuration.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    pins = ["--pin", PIN, "--so-pin", PIN * 2]
    command = [_program("softhsm2-util"), "--init-token", "--free", "--label", TOKEN, *pins]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise TrustError(f"no token was made: {done.stderr.decode()[-300:]}")
    pin_file.touch(mode=0o600)
    pin_file.write_text(f"{PIN}\n")
    return Pkcs11Place(module=module, token=TOKEN, key="driveway", pin_file=pin_file)


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise TrustError(f"{name} is not installed", hint="apt install swtpm swtpm-tools softhsm2")
    return path


def _free_pair() -> int:
    """A port that is free, as is the next, which swtpm's control channel takes."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise TrustError("no two free ports in a row")
