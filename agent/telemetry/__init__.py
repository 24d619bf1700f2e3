"""Reads the inference computer: temperatures and power."""
