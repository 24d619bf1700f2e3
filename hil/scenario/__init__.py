"""Scenarios: a car, what happens to it, and what must be seen. Read from TOML, played on any rig, judged afterwards."""
