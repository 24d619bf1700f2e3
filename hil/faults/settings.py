"""How the processes of a fault run are set up: the broker's, the dispatchers' and the agents' configuration.

Everything is what a rig or a vehicle has but for how long one waits; nothing of what one does is different:

* parked_for_s 1 (60 on a vehicle): faults, not waiting, fill the time;
* request_timeout_ms 3,000 (10,000): an unanswered question is asked again sooner;
* keepalive_s 10 (300; a dispatcher's 30): a half-open link is noticed in 20 s, where a vehicle takes ten minutes;
* reconnect_max_s 5 (900; a dispatcher's 15): the ceiling of the back-off between connections, which never comes down
  under faults that follow each other faster than a link counts as settled;
* leases of 20 s, which a partition outlasts (then another car has the job, too), and `--retry-s 1` (30).
"""

from __future__ import annotations

LEASE_TTL_S = 20
ITEMS_PER_JOB, SLICE_ITEMS, PRICE_MICRO = 12, 4, 7

SHARE_GROUP = "faults"
MOSQUITTO_MORE = """\
user root
log_dest stdout
log_type error
log_type warning
log_type notice
log_type debug
"""
"""Beside what guards it (`hil.acl.guarded`): `debug` writes a line a packet, from which publishes are counted."""

AGENT_CONFIG = """\
state_dir = "state"
control_socket = "{control_socket}"

[unit]
id = "{unit}"
device_class = "rig-faults"

[vehicle]
profiles = ["tesla-model3", "driveway-energy"]
{buses}
[computer]
reader = "jetson"
sysfs_root = "{cars}/sysfs"
interval_ms = 1000

[network]
metered = "no"

[fleet]
brokers = ["127.0.0.1:{port}"]
dispatcher_key = "../dispatcher/dispatcher.pub"
enrol_url = "{enrol_url}"
enrol_code = "{enrol_code}"
allow_loopback_http = true
keepalive_s = 10
reconnect_max_s = 5
{tls}
[inference]
packages_dir = "../packages"
publisher_key = "../publisher.pub"
threads = 1

[policy]
parked_for_s = 1
reserve_percent = 40
request_timeout_ms = 3000
"""
BUS = """
[[vehicle.bus]]
name = "{name}"
interface = "unixgram"
channel = "{cars}/{number}.{name}"
"""
DISPATCHER_ARGUMENTS = ("--retry-s", "1", "--keepalive-s", "10", "--reconnect-max-s", "5", "--share-group", SHARE_GROUP)
TLS = """
[fleet.tls]
ca = "{ca}"
certificate = "{certificate}"
key = "{key}"

"""
