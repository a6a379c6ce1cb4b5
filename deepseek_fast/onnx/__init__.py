"""ONNX models: optimize them, verify the result, export torch modules to them.

    optimize(model_or_path, ...) -> ModelProto     rewrite to the library's operators, each with a plain ai.onnx body
    explain(model_or_path, ...) -> Optimized       the same, and what was rewritten and what was refused, in sentences
    verify(reference, candidate, ...) -> Report    structure, numbers, and the first node that departs
    export(module, args, path, ...) -> ModelProto  torch.onnx.export with the library's operators

Importing this package imports neither onnx nor torch: its modules do so in the functions that need them. The functions
are imported here at once, so that `deepseek_fast.onnx.optimize` is always the function and never the module around it.
"""

from deepseek_fast.onnx._notes import Note
from deepseek_fast.onnx.export import export
from deepseek_fast.onnx.optimize import Optimized, explain, optimize
from deepseek_fast.onnx.report import Departure, OutputReport, Report
from deepseek_fast.onnx.verify import verify

__all__ = ["Departure", "Note", "Optimized", "OutputReport", "Report", "explain", "export", "optimize", "verify"]
