"""The demonstration: a parked car earns, the driver comes back in the middle, and everything is checked."""
