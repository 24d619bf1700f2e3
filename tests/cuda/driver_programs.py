"""What the programs that try out the stand-in driver begin with: a context, and the few calls that pycuda lacks."""

PRELUDE = """
import ctypes, os, sys, threading, time
from pathlib import Path
import numpy as np
import pycuda.driver as cuda
from tests.cuda.standin import write_control

libcuda = ctypes.CDLL("libcuda.so.1")
P = ctypes.c_void_p
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
NON_BLOCKING = 1

cuda.init()
device = cuda.Device(0)
context = device.retain_primary_context()
context.push()

def finish():
    context.detach()
    libcuda.cuCtxPopCurrent_v2(ctypes.byref(P()))

import atexit
atexit.register(finish)

module = cuda.module_from_buffer(f"HOSTSHIM:{sys.argv[1]}\\0".encode())
decode = module.get_function("ctc_greedy_decode_float32").prepare("PPPi")
CLASSES = 100

def launch(stream, x, best, probability, steps=5, items=2):
    decode.prepared_async_call((steps, items), (256, 1, 1), stream, int(x), int(best), int(probability), CLASSES)

def pinned(shape, dtype):
    return cuda.pagelocked_empty(shape, dtype)

def begin(stream, mode=THREAD_LOCAL):
    return libcuda.cuStreamBeginCapture_v2(P(stream.handle), mode)

def end(stream):
    graph = P()
    code = libcuda.cuStreamEndCapture(P(stream.handle), ctypes.byref(graph))
    return code, graph

def instantiate(graph):
    executable = P()
    assert libcuda.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, ctypes.c_ulonglong(0)) == 0
    return executable

def replay(executable, stream):
    return libcuda.cuGraphLaunch(executable, P(stream.handle))

def control(**settings):
    write_control(Path(os.environ["STANDIN_CONTROL"]), settings)

def failed(call, *arguments):
    try:
        call(*arguments)
    except cuda.Error as error:
        return str(error)
    return ""
"""
