"""`driveway-hil gpu`: what only a machine with an NVIDIA GPU can show, measured there by one command, with a report.

Everything else about the accelerator is tested without one; what stays open is whether the same code is right and quick
on real hardware. Each chapter is a file here and stands alone: one that cannot run (no TensorRT on the machine, say) is
named in the report with the reason, and the others go on.
"""
