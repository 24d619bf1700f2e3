"""The operations of a pipeline: a NumPy reference of each, and the CUDA kernels with the same meaning."""
