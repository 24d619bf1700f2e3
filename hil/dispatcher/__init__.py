"""The honest counterpart of the car: leases jobs over MQTT, judges what comes back, pays once, and proves it."""
