"""The part of TensorRT's Python interface that we use: present in `tensorrt` 10.3 to 11.x and in `tensorrt_rtx` 1.6 on.

Nothing else of it may be touched in this folder (a test reads the source), and the bindings are held against this table
before they are used: a release that has dropped something is told by name, at the start, and not in the middle of
a night. What only some of them have is in OPTIONAL and is asked for with `hasattr` at the place of use.

Enumerations are named and never written as integers, since those differ between releases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "ILogger": ("ERROR", "INTERNAL_ERROR", "WARNING"),
    "IErrorRecorder": (),
    "IProgressMonitor": (),
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed", "error_recorder"),
    "ICudaEngine": (
        "create_execution_context",
        "get_tensor_dtype",
        "get_tensor_location",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "get_tensor_shape",
        "num_io_tensors",
        "num_optimization_profiles",
    ),
    "IExecutionContext": (
        "error_recorder",
        "execute_async_v3",
        "get_tensor_shape",
        "infer_shapes",
        "set_device_memory",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
        "update_device_memory_size_for_shapes",
    ),
    "Builder": (
        "build_serialized_network",
        "create_builder_config",
        "create_network",
        "create_optimization_profile",
        "error_recorder",
        "max_threads",
    ),
    "INetworkDefinition": ("get_input", "num_inputs"),
    "ITensor": ("get_dimension_name", "is_shape_tensor", "name", "set_dimension_name", "shape"),
    "BuilderFlag": ("TF32",),
    "IBuilderConfig": (
        "add_optimization_profile",
        "builder_optimization_level",
        "clear_flag",
        "max_aux_streams",
        "progress_monitor",
        "set_flag",
        "set_memory_pool_limit",
    ),
    "IOptimizationProfile": ("set_shape",),
    "OnnxParser": ("get_error", "num_errors", "parse"),
    "ParserError": ("desc", "node_name", "node_operator"),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "MemoryPoolType": ("WORKSPACE",),
    "NetworkDefinitionCreationFlag": (),
    "TensorIOMode": ("INPUT",),
    "TensorLocation": ("DEVICE",),
}

OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "ICudaEngine": ("create_runtime_config",),
    "IRuntimeConfig": (
        "dynamic_shapes_kernel_specialization_strategy",
        "set_execution_context_allocation_strategy",
    ),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
    "BuilderFlag": ("REQUIRE_USER_ALLOCATION",),
    "ComputeCapability": ("CURRENT",),
    "IBuilderConfig": (
        "create_timing_cache",
        "num_compute_capabilities",
        "set_compute_capability",
        "set_timing_cache",
    ),
    "ITimingCache": ("serialize",),
}


def missing(trt: Any) -> list[str]:
    """What of REQUIRED the bindings `trt` lack, as `Class` or `Class.member`."""
    lacking = []
    for name, members in REQUIRED.items():
        kind = getattr(trt, name, None)
        if kind is None:
            lacking.append(name)
        else:
            lacking += [f"{name}.{member}" for member in members if not hasattr(kind, member)]
    return lacking
