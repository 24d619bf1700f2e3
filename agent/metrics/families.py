"""Every metric of the daemon: its name, its kind, its unit, and what it means. docs/metrics.md is held against this.

Names follow Prometheus' and OpenMetrics' conventions: base units at the end (`_seconds`, `_celsius`, `_watts`,
`_joules`, `_bytes`, `_ratio`); samples of counters end with `_total`, `_info` carries text. Labels have few values
each (`LIMIT_OF_VALUES`), and none is an identifier of a lease, a customer, a place or a person.
"""

from __future__ import annotations

from agent.metrics.text import Family

LIMIT_OF_VALUES = 32
"""A label whose values come from outside has so many at most; the rest is counted together as `other`."""
OTHER = "other"

BUILD = Family("driveway_build", "info", "The agent that runs.", labels=("version",))
STATE = Family(
    "driveway_state",
    "gauge",
    "1 for what the agent does: blocked, ready, running, yielding, paused or fault; 0 for the others.",
    labels=("state",),
)
GATE_LEVEL = Family(
    "driveway_gate_level", "gauge", "What each gate lets through: 0 open, 1 hold, 2 closed.", labels=("gate",)
)
OWNER_MODE = Family("driveway_owner_mode", "gauge", "1 for what the owner said last.", labels=("mode",))

POWER_CAP = Family("driveway_power_cap_watts", "gauge", "What the computer may draw now.", "watts")
POWER = Family("driveway_computer_power_watts", "gauge", "What the computer draws.", "watts")
DIE = Family("driveway_computer_die_celsius", "gauge", "The die's temperature.", "celsius")
SENSOR = Family("driveway_computer_sensor", "info", "Which sensor these readings are from.", labels=("sensor",))
ENERGY = Family(
    "driveway_energy_joules", "counter", "Energy that leases drew at the computer, over restarts.", "joules"
)

CHARGE = Family("driveway_battery_charge_ratio", "gauge", "Charge of the traction battery, 0 to 1.", "ratio")
PACK = Family("driveway_battery_pack_celsius", "gauge", "Temperature of the traction battery.", "celsius")
AMBIENT = Family("driveway_ambient_celsius", "gauge", "Temperature outside the vehicle.", "celsius")
SIGNAL_PROBLEMS = Family("driveway_signal_problems", "gauge", "Vehicle signals that cannot be believed now.")
SOURCE_UP = Family("driveway_source_up", "gauge", "1 while a source of vehicle signals is heard.", labels=("source",))
SOURCE_EVENTS = Family(
    "driveway_source_events", "counter", "What a source heard and dropped, by kind.", labels=("source", "kind")
)

ACCELERATOR = Family(
    "driveway_accelerator_state", "gauge", "1 for the accelerator's state, 0 for the others.", labels=("state",)
)
PLANS_MISSING = Family("driveway_plans_missing", "gauge", "Packages that wait for their engine plan.")
WORKER_UP = Family("driveway_worker_up", "gauge", "1 while there is an inference worker.")

LEASE_ACTIVE = Family("driveway_lease_active", "gauge", "1 while a lease is at work.")
LEASE_DONE = Family("driveway_lease_slices_done", "gauge", "Finished slices of the lease at work.")
LEASE_WANTED = Family("driveway_lease_slices_wanted", "gauge", "Slices of the lease at work.")
SLICES_STARTED = Family("driveway_slices_started", "counter", "Slices begun since the daemon started.")
SLICES_KEPT = Family("driveway_slices_kept", "counter", "Slices finished and kept on disk since the daemon started.")
OUTBOX = Family("driveway_outbox_pending", "gauge", "Hand-ins that await a verdict.")
LEDGER = Family("driveway_ledger_leaves", "gauge", "Leaves of the ledger.")
LEDGER_WITNESSED = Family("driveway_ledger_witnessed_leaves", "gauge", "Leaves that the dispatcher countersigned.")
LEDGER_DISPUTED = Family("driveway_ledger_disputed", "gauge", "1 while the dispatcher disputes the ledger.")

EARNED = Family(
    "driveway_earnings_gross", "counter", "Paid for all leases, in units of the currency.", labels=("currency",)
)
ENERGY_COST = Family(
    "driveway_earnings_energy_cost", "gauge", "What the energy for all leases cost at the plug.", labels=("currency",)
)
NET = Family("driveway_earnings_net", "gauge", "Paid for all leases, less their energy.", labels=("currency",))

VACATE = Family(
    "driveway_vacate_seconds",
    "summary",
    "From the sign of the driver to the end of the worker: quantiles over the newest vacates, and how many there were.",
    "seconds",
)

LINK_UP = Family("driveway_link_up", "gauge", "1 while there is a connection to a broker.")
LINK_ATTEMPTS = Family("driveway_link_attempts", "gauge", "Attempts to connect since the link was up last.")
LINK_CONNECTIONS = Family("driveway_link_connections", "counter", "Connections to a broker since the start.")
LINK_SENT = Family("driveway_link_sent_bytes", "counter", "Bytes sent to brokers since the start.", "bytes")
LINK_RECEIVED = Family("driveway_link_received_bytes", "counter", "Bytes received from brokers.", "bytes")
LINK_DROPPED = Family("driveway_link_dropped_messages", "counter", "Messages dropped, by reason.", labels=("reason",))
REFUSED_MESSAGES = Family("driveway_refused_messages", "counter", "Messages not understood, by kind.", labels=("kind",))
REFUSED_PACKAGES = Family("driveway_refused_packages", "gauge", "Packages on this computer that may not run.")
CATALOGUE_EXPIRED = Family("driveway_catalogue_expired", "gauge", "1 when the operator's catalogue is too old.")

AWAKE = Family("driveway_awake_held", "gauge", "1 while the car is kept awake.")
AWAKE_TIME = Family("driveway_awake_today_seconds", "gauge", "How long it was kept awake today.", "seconds")
AWAKE_ENERGY = Family("driveway_awake_today_joules", "gauge", "What keeping it awake took today.", "joules")

CONTROL_CLIENTS = Family("driveway_control_clients", "gauge", "Connections to the control socket.")
CONTROL_REFUSED = Family("driveway_control_refused", "counter", "Connections to the control socket turned away.")
LOG_EVENTS = Family("driveway_log_events", "counter", "Log events, those held back too.", labels=("level",))
LOG_HELD_BACK = Family("driveway_log_held_back", "counter", "Log events that were counted instead of written.")

CPU = Family("process_cpu_seconds", "counter", "Processor time of the daemon, without its worker.", "seconds")
RESIDENT = Family("process_resident_memory_bytes", "gauge", "Memory of the daemon, without its worker.", "bytes")
DESCRIPTORS = Family("process_open_fds", "gauge", "Open file descriptors of the daemon.")
STARTED = Family("process_start_time_seconds", "gauge", "When the daemon started, in seconds since 1970.", "seconds")

ALL: tuple[Family, ...] = tuple(one for one in list(globals().values()) if isinstance(one, Family))
"""In the order above."""
