"""One vehicle in QEMU: its disk, TPM, buses, sensors and network, and what may happen to it.

Software emulation (TCG), always: where nested virtualisation is missing, /dev/kvm may open and a stock kernel still
hang, and a rig that is fast on one machine and dead on the next is no rig. Python is 12 to 28 times slower inside.

| it has | for |
| --- | --- |
| an overlay over the image, and a second disk | what it writes; slots of an A/B vehicle |
| a TPM 2.0 (swtpm, which keeps its keys in the folder) | the unit's key, sealed credentials |
| two CAN controllers (SJA1000) on one bus | the kernel's CAN drivers; vcan0 to vcan2 come with the image |
| a network where only the rig's forwards exist, each at 10.0.2.100 | broker and dispatcher; nothing else of the host |
| ports `shell`, `frames`, `sensors` (virtio-serial) | the rig's own ways in, which outlive the network |
| a hardware watchdog, suspend to RAM, a generation id | what a car's computer has, and what snapshots need |

A power cut kills QEMU: what the guest has not handed to its disk is lost, what it has is kept, flushed or not (a disk
that loses its own cache is `hil.powercut`'s matter). Snapshots belong to one build of QEMU and one set of devices.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import inspect
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from agent.errors import DrivewayError
from hil.vm.image import Image
from hil.vm.qmp import Qmp
from hil.vm.shell import GuestShell

FLEET_ADDRESS = "10.0.2.100"
"""Where the guest finds what is forwarded: broker and dispatcher."""
PROGRAMS = ("qemu-system-x86_64", "qemu-img", "swtpm", "nc")
BOOT_S, RESTORE_S, POWER_DOWN_S, PORT_S = 240.0, 60.0, 60.0, 20.0
LINK, PORTS = "nic0", ("shell", "frames", "sensors")
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Options:
    """How a machine is built. `forwards`: ports at 10.0.2.100, and the ports of the loopback interface behind them.

    `time_warp`: one core whose time is counted in instructions and leaps over every idle moment: a night in minutes.
    What is outside, such as a broker on this machine, then seems very slow to the guest.
    """

    memory_mib: int = 1024
    cores: int = 2
    forwards: Mapping[int, int] = field(default_factory=dict)
    time_warp: bool = False


class Machine:
    """A context manager: nothing of it runs any more when it is left. `folder` keeps disks, TPM and logs."""

    def __init__(self, image: Image, folder: Path, options: Options | None = None) -> None:
        self.image, self.folder, self.options = image, folder, options or Options()
        self._closing = ExitStack()
        # Paths of Unix sockets are short, and the folder's may be long.
        self.sockets = Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="driveway-vm-")))
        self.shell = GuestShell(self.port("shell"))
        self._qemu: subprocess.Popen[bytes] | None = None
        self._tpm: subprocess.Popen[bytes] | None = None
        self._qmp: Qmp | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.power_cut()
        self._closing.close()

    # --- power --------------------------------------------------------------------------------------------------

    def start(self, snapshot: str = "") -> float:
        """Switch it on, or go on from a snapshot; returns how long it took until the shell answered, in seconds.

        Raises DrivewayError, with QEMU's last words, when it does not come up.
        """
        if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
            hint = "apt-get install qemu-system-x86 qemu-utils swtpm netcat-openbsd"
            raise DrivewayError(f"a vehicle in a VM needs {', '.join(missing)}", hint=hint)
        assert self._qemu is None, "it is running"
        self._prepare()
        began_s = time.monotonic()
        self._tpm = self._spawn("swtpm", self._tpm_command())
        self._await_file(self.sockets / "tpm.sock", self._tpm, "swtpm")
        self._qemu = self._spawn("qemu", [*command_line(self), *(("-loadvm", snapshot) if snapshot else ())])
        self._await_file(self.sockets / "qmp.sock", self._qemu, "qemu")
        self._qmp = Qmp(self.sockets / "qmp.sock")
        try:
            self.shell.wait_until_it_answers(RESTORE_S if snapshot else BOOT_S)
        except DrivewayError as error:
            raise DrivewayError(f"{error} ({self._last_words('qemu')})") from error
        return time.monotonic() - began_s

    def power_cut(self) -> None:
        """Off, this instant."""
        if self._qmp is not None:
            self._qmp.close()
        for process in (self._qemu, self._tpm):
            if process is not None:
                process.kill()
                process.wait()
        self._qemu = self._tpm = self._qmp = None

    def power_down(self) -> None:
        """Press the power button, and wait until it is off; raises DrivewayError when it does not end."""
        self.qmp.do("system_powerdown")
        self.wait_until_off(POWER_DOWN_S)

    def wait_until_off(self, timeout_s: float) -> None:
        """Return once it is off by itself; raises DrivewayError when it is not in this time."""
        assert self._qemu is not None, "it is not running"
        try:
            self._qemu.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise DrivewayError(f"the vehicle was still on after {timeout_s:.0f} s") from None
        self.power_cut()

    @property
    def is_on(self) -> bool:
        """Whether QEMU runs."""
        return self._qemu is not None and self._qemu.poll() is None

    @property
    def is_awake(self) -> bool:
        """Whether its processors run: it is on, not suspended, not frozen."""
        return self.is_on and bool(self.qmp.do("query-status")["running"])

    @property
    def qemu_version(self) -> str:
        """Of the QEMU that is installed here."""
        return _version()

    # --- what happens to it -------------------------------------------------------------------------------------

    @property
    def qmp(self) -> Qmp:
        """QEMU's own ear; raises DrivewayError while it is off."""
        if self._qmp is None:
            raise DrivewayError("the vehicle is off")
        return self._qmp

    def set_link(self, *, up: bool) -> None:
        """Plug the network cable in, or pull it."""
        self.qmp.do("set_link", name=LINK, up=up)

    def freeze(self) -> None:
        """Stop all of it; its clocks stand still, as in a VM that its host forgets."""
        self.qmp.do("stop")

    def unfreeze(self) -> None:
        """Go on."""
        self.qmp.do("cont")

    def freeze_tpm(self) -> None:
        """Stop the TPM: it answers nothing any more, as a chip that hangs."""
        assert self._tpm is not None, "it is off"
        self._tpm.send_signal(signal.SIGSTOP)

    def unfreeze_tpm(self) -> None:
        """The TPM goes on with what it was asked."""
        assert self._tpm is not None, "it is off"
        self._tpm.send_signal(signal.SIGCONT)

    def suspend(self, timeout_s: float = 60.0) -> None:
        """Suspend to RAM, by the guest's own kernel; returns once it sleeps."""
        self.qmp.forget()
        # Half a second later, so that this answer still gets out.
        self.shell.check("systemd-run --quiet --collect sh -c 'sleep 0.5; echo mem >/sys/power/state'")
        self.qmp.wait_for("SUSPEND", timeout_s)

    def wake(self) -> None:
        """End a suspend, and wait until the shell answers again."""
        self.qmp.do("system_wakeup")
        self.shell.wait_until_it_answers(RESTORE_S)

    def save(self, snapshot: str) -> float:
        """Keep disk, memory and devices under this name in the overlay; how long it took, in seconds."""
        began_s = time.monotonic()
        self.qmp.monitor(f"savevm {snapshot}")
        return time.monotonic() - began_s

    # --- the rig's ways in --------------------------------------------------------------------------------------

    def port(self, name: str) -> Path:
        """The Unix socket of a virtio-serial port (`shell`, `frames` or `sensors`)."""
        return self.sockets / f"{name}.sock"

    def serial_log(self) -> str:
        """What kernel and systemd have written on the serial console since it was switched on."""
        return (self.folder / "serial.log").read_text("utf-8", "replace")

    # --- underneath ---------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Disks and folder, where they are not there yet; sockets of an earlier run are removed."""
        (self.folder / "tpm").mkdir(parents=True, exist_ok=True)
        for stale in self.sockets.iterdir():
            stale.unlink()
        overlay, data = self.folder / "disk.qcow2", self.folder / "data.qcow2"
        if not overlay.exists():
            _run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(self.image.disk), "-F", "raw", str(overlay))
        if not data.exists():
            _run("qemu-img", "create", "-q", "-f", "qcow2", str(data), "2G")

    def _tpm_command(self) -> list[str]:
        state, control = self.folder.absolute() / "tpm", self.sockets / "tpm.sock"
        return ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={control}"]

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - called from the main thread, before any other starts
            )

    def _await_file(self, path: Path, process: subprocess.Popen[bytes], name: str) -> None:
        deadline_s = time.monotonic() + PORT_S
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline_s:
                self.power_cut()
                raise DrivewayError(f"{name} did not start: {self._last_words(name)}")
            time.sleep(0.02)

    def _last_words(self, name: str) -> str:
        with contextlib.suppress(OSError):
            lines = (self.folder / f"{name}.log").read_text("utf-8", "replace").splitlines()
            return lines[-1] if lines else f"{name} said nothing"
        return f"{name} has no log"


def command_line(machine: Machine) -> list[str]:
    """QEMU's, for a machine whose folder is prepared."""
    image, options, folder = machine.image, machine.options, machine.folder.absolute()
    accelerator = "tcg,tb-size=512" if options.time_warp else "tcg,thread=multi,tb-size=512"
    warp = ["-icount", "shift=1,sleep=off"] if options.time_warp else []
    cores = 1 if options.time_warp else options.cores
    # Nehalem: half the time of `max`, and enough for ONNX Runtime.
    command = ["qemu-system-x86_64", "-accel", accelerator, *warp, "-machine", "q35", "-cpu", "Nehalem,+rdrand"]
    command += ["-smp", str(cores), "-m", str(options.memory_mib), "-nodefaults", "-no-user-config", "-display", "none"]
    command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    command += ["-append", "root=/dev/vda rw console=ttyS0 quiet mitigations=off panic=-1"]
    for number, name in enumerate(("disk", "data")):
        command += ["-drive", f"if=none,id=d{number},file={folder}/{name}.qcow2,format=qcow2,cache=unsafe"]
        command += ["-device", f"virtio-blk-pci,drive=d{number},serial={name}"]
    forwards = "".join(
        f",guestfwd=tcp:{FLEET_ADDRESS}:{inside}-cmd:nc 127.0.0.1 {outside}"
        for inside, outside in options.forwards.items()
    )
    command += ["-netdev", f"user,id=n0,restrict=on{forwards}", "-device", f"virtio-net-pci,netdev=n0,id={LINK}"]
    command += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
    for name in PORTS:
        command += ["-chardev", f"socket,id={name},path={machine.port(name)},server=on,wait=off"]
        command += ["-device", f"virtserialport,chardev={name},name={name}.0"]
    command += ["-chardev", f"socket,id=tpmc,path={machine.sockets}/tpm.sock"]
    command += ["-tpmdev", "emulator,id=tpm0,chardev=tpmc", "-device", "tpm-tis,tpmdev=tpm0"]
    command += ["-object", "can-bus,id=cb0", *(("-device", "kvaser_pci,canbus=cb0") * 2)]
    command += ["-device", "vmgenid,guid=auto", "-global", "ICH9-LPC.disable_s3=0"]
    command += ["-device", "i6300esb,id=wd0", "-action", "watchdog=reset"]
    command += ["-qmp", f"unix:{machine.sockets}/qmp.sock,server=on,wait=off"]
    return [*command, "-serial", f"file:{folder}/serial.log"]


def devices_digest() -> str:
    """What a snapshot depends on besides the image: QEMU's build, and how machines are put together."""
    return hashlib.sha256(f"{_version()}\n{inspect.getsource(command_line)}".encode()).hexdigest()[:12]


def _version() -> str:
    done = subprocess.run([PROGRAMS[0], "--version"], capture_output=True, check=True)
    return done.stdout.decode().splitlines()[0]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise DrivewayError(f"{command[0]} failed: {done.stderr.decode('utf-8', 'replace').strip()}")


def _die_with_parent() -> None:
    """In the child: end when the rig's process ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
