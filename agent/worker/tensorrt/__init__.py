"""TensorRT and TensorRT-RTX, on the subset of their Python API that all supported versions share."""
