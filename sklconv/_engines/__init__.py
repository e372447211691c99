"""What computes the features and outputs of a fitted network: torch, or ONNX Runtime."""
