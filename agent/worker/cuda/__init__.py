"""The accelerator as the worker uses it: context, memory, kernels and graphs, on pycuda and libcuda."""
