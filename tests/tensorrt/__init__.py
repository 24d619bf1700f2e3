"""TensorRT without a GPU: real bindings of many versions, the real TensorRT-RTX builder, a simulated runtime."""
