"""Reads the car, and never writes to it: CAN buses through DBC profiles, as VSS leaves."""
