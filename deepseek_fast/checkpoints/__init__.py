"""Checkpoint files, converted where they lie: no model is built and no framework's loader runs."""

from deepseek_fast.checkpoints._fp8_convert import Report, fp8_convert
from deepseek_fast.checkpoints._plan import KEEP

__all__ = ["KEEP", "Report", "fp8_convert"]
