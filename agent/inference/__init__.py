"""The parent side of inference: starting, feeding and ending the worker process."""
