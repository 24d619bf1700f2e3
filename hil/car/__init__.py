"""The simulated car: an honest simulator of the other side of the bus, as its own process (`python -m hil.car`)."""
