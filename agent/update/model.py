"""What the update program knows, hears and does, as values: times in seconds of boot time, versions as folder names."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Phase(enum.StrEnum):
    """Where an update is."""

    IDLE = "idle"
    WAITING = "waiting"
    SWITCHING = "switching"
    TRIAL = "trial"
    ROLLING_BACK = "rolling_back"


class Result(enum.StrEnum):
    """What became of a version."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"


@dataclass(frozen=True)
class Past:
    """One version that is decided on, and why, for people; `at_wall_s` by the clock as it was."""

    version: str
    result: Result
    reason: str
    at_wall_s: int


@dataclass(frozen=True)
class Before:
    """How the vehicle was before the switch: what its doctor found amiss then is no fault of the new version."""

    failing: tuple[str, ...] = ()
    lease: str = ""
    """The newest lease that was handed in, `job/epoch`."""


@dataclass(frozen=True)
class Journal:
    """What outlives a power cut. `before` is the version that `candidate` is to replace."""

    phase: Phase = Phase.IDLE
    candidate: str = ""
    before: str = ""
    boot: str = ""
    """The boot in which the trial was last counted."""
    boots: int = 0
    """In how many boots the candidate was on trial."""
    unwell: int = 0
    """How many of them, the last ones in a row, ended before it was once found well."""
    reason: str = ""
    """Why it is rolled back."""
    floor: str = "0"
    """The newest version that was ever committed: none below it is taken."""
    was: Before = field(default_factory=Before)
    past: tuple[Past, ...] = ()

    def decided(self, version: str) -> Past | None:
        """The last word on a version, if there is one."""
        return next((one for one in reversed(self.past) if one.version == version), None)


@dataclass(frozen=True)
class Limits:
    """How patient the program is, in seconds of boot time, which runs on while the car sleeps.

    A computer that is twenty times slower wants more (docs/install.md).
    """

    ready_s: float = 120.0
    """From the start to READY; more than the unit's own TimeoutStartSec=."""
    ill_s: float = 90.0
    """A daemon that does not answer, or a check that fails, may recover within this."""
    lease_s: float = 600.0
    """So long a lease is waited for; a worker's golden vector is enough after that."""
    trial_s: float = 7 * 86_400.0
    """A version that has not computed by then, in one boot, never proves itself."""
    doctor_s: float = 420.0
    unwell_boots: int = 3
    """So many boots in a row may end before the version was found well: by a power cut, or by its own doing."""
    boots: int = 30
    """So many boots may a trial last, however well it is."""
    poll_s: float = 30.0


@dataclass(frozen=True)
class Disk:
    """The versions that are there, and where the two links lead ("": nowhere)."""

    current: str
    good: str
    staged: frozenset[str]


@dataclass(frozen=True)
class Health:
    """One look at the version on trial. `problem` is why it is ill now; a `dead` one does not recover by itself."""

    problem: str = ""
    dead: bool = False
    computed: bool = False
    """A worker of it has computed its golden vector."""
    leased: bool = False
    """It has handed in a lease."""


# --- what the program hears -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Began:
    """The program has begun, in this boot.

    `at_boot`: before the daemon, which systemd starts; nothing may be started then, or waited for.
    """

    boot: str
    disk: Disk
    at_boot: bool = False


@dataclass(frozen=True)
class Looked:
    """It looked for versions."""

    disk: Disk


@dataclass(frozen=True)
class Checked:
    """The candidate's files were held against its list; `problem` is empty where they are all right."""

    version: str
    problem: str


@dataclass(frozen=True)
class Answered:
    """The daemon was told of the update; `ready`: it may be switched now. `was` is how the vehicle is then."""

    ready: bool
    was: Before = field(default_factory=Before)


@dataclass(frozen=True)
class Switched:
    """The daemon was stopped, `current` leads to the candidate, and its files are still right unless `problem`."""

    problem: str = ""


@dataclass(frozen=True)
class Started:
    """What `current` leads to was started: it said READY, or `problem`."""

    problem: str = ""


@dataclass(frozen=True)
class Examined:
    """The candidate was looked at."""

    health: Health


@dataclass(frozen=True)
class WentBack:
    """`current` leads to the version before, and that was started; `problem` where it did not say READY."""

    problem: str = ""


Event = Began | Looked | Checked | Answered | Switched | Started | Examined | WentBack


# --- what it does -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """Hold a version's files against its list."""

    version: str


@dataclass(frozen=True)
class Ask:
    """Tell the daemon that this version waits, and hear whether it may be switched."""

    version: str


@dataclass(frozen=True)
class Switch:
    """Stop the daemon and have `current` lead to this version."""

    version: str


@dataclass(frozen=True)
class Start:
    """Start the daemon, and wait for READY."""


@dataclass(frozen=True)
class Examine:
    """Look at the candidate; `prove`: have a worker compute."""

    was: Before
    prove: bool


@dataclass(frozen=True)
class GoBack:
    """Stop the daemon, have `current` lead to this version, and start it."""

    version: str


@dataclass(frozen=True)
class Point:
    """Have a link lead to a version: `current`, before the daemon starts at boot, or `good`, which commits."""

    link: str
    version: str


@dataclass(frozen=True)
class Prune:
    """Remove these versions, or all but these; those that the links lead to always stay."""

    versions: frozenset[str]
    but: bool = False


Action = Check | Ask | Switch | Start | Examine | GoBack | Point | Prune
