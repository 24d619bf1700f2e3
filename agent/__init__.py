"""Driveway's daemon: lends a parked car's idle inference computer, and gives it back at once."""

__version__ = "0.1.0"
