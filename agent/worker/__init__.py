"""The child side of inference: it holds the engine, and nothing else. Never imports the daemon."""
