"""The indexer on emulated CPUs: logits within the bound and exact selections on every aarch64 level, on x86-64 without
AVX and with AVX2 but no more. An instruction above the CPU's level ends the process with SIGILL, a byte outside a
tensor or the workspace with SIGSEGV. amx has no kernel of its own.
"""

from collections.abc import Iterator

import pytest
import torch

from deepseek_fast.kernels.lightning_indexer import ref, test_lightning_indexer, test_lightning_indexer_errors
from tests.emulated import Emulated
from tests.emulated_indexer import indexer
from tests.test_emulated import RUNS, started
from tests.test_indexer_memory_bounds import check_all

pytestmark = pytest.mark.slow  # `make test-emulated` runs them


@pytest.fixture(
    scope="module",
    params=[run for run in RUNS if run[1] != "amx"],
    ids=lambda run: f"{run[0].model}-{run[1]}",
)
def emulated(request: pytest.FixtureRequest) -> Iterator[Emulated]:
    with started(*request.param) as process:
        assert process.level == request.param[1]
        yield process


def test_every_case(emulated: Emulated) -> None:
    check_all(emulated)


def test_any_order_of_scores(emulated: Emulated) -> None:
    for name, row in test_lightning_indexer.orders(4100, torch.Generator().manual_seed(0)).items():
        for k, sorted_by in ((1, "value"), (512, "value"), (1100, None), (4103, "index")):
            order = {"sorted_by": sorted_by} if sorted_by else {}
            got = indexer(emulated, "topk_indices", {"scores": row, "k": k, "flush": 1} | order)
            assert torch.equal(got, ref.topk_indices_ref(row, k, sorted_by=sorted_by)), f"{k}, {name}"


def test_bad_input_has_the_same_sentence(emulated: Emulated) -> None:
    refused = 0
    for op, change, _, sentence in test_lightning_indexer_errors.BAD:
        inputs = test_lightning_indexer_errors.good(op) | change
        if not all(isinstance(value, (torch.Tensor, str, int, torch.dtype)) for value in inputs.values()):
            continue  # a door's affair
        with pytest.raises(RuntimeError) as error:
            indexer(emulated, op, inputs)
        assert str(error.value).startswith(f"{op}: {sentence}")
        refused += 1
    assert refused > 30
