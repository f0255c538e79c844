"""Graphs: encoders traced to ONNX, in lower precision and without constant heads."""
