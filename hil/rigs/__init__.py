"""Rigs: where a scenario is played. Each is a `hil.rigs.interface.Rig`; `hil.rigs.registry` knows them all."""
