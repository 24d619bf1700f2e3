"""The looks: a small function a gate, naming what speaks against running now. `agent.core.gates` has the table."""
