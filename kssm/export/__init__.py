"""Models for other runtimes: the step as ONNX."""

from kssm.export.onnx import export_onnx
from kssm.export.packing import Layout, Packed

__all__ = ["Layout", "Packed", "export_onnx"]
