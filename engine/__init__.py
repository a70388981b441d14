"""The data plane: inference on onnxruntime and Arrow, the log store and the drift arithmetic."""
