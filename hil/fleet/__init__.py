"""`driveway-hil fleet`: thousands of protocol-true cars against a real broker and real dispatchers, on one machine.

Every car is the daemon's own core and desk, with a key of its own, on an MQTT connection of its own; only its vehicle,
its computer and its disk are stood in for. What grows with a fleet is measured: connects, latencies, messages, bytes,
CPU and memory, and how a region comes back after an outage.
"""
