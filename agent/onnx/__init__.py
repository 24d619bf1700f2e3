"""Looking at an untrusted ONNX model before any native code does: plain Python, bounded."""
