"""The rules of a GPU's sums are set by its kind alone: the flags are there on any machine."""

import os
from collections.abc import Iterator

import pytest
import torch
import torch._inductor.config

from cloudjob.training import precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def rules() -> dict:
    """All that `settle` may change."""
    return {
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "products": torch.backends.cuda.matmul.allow_tf32,
        "convolutions": torch.backends.cudnn.allow_tf32,
        "benchmark": torch.backends.cudnn.benchmark,
        "cudnn": torch.backends.cudnn.deterministic,
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "errors": not torch.is_deterministic_algorithms_warn_only_enabled(),
        "compiled": torch._inductor.config.deterministic,
    }


@pytest.fixture(autouse=True)
def as_before(monkeypatch) -> Iterator[None]:
    """No rule outlives its test."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    found, filled = rules(), torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = found["products"], found["convolutions"]
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = found["benchmark"], found["cudnn"]
    torch.use_deterministic_algorithms(found["algorithms"], warn_only=not found["errors"])
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch._inductor.config.deterministic = found["compiled"]
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_of_a_processor_nothing_is_set_or_told():
    before = rules()
    precision.settle(CPU)
    assert rules() == before
    assert precision.facts(CPU) == {}


def test_a_gpu_computes_fast_and_the_same_twice():
    torch.backends.cudnn.benchmark = True
    precision.settle(GPU)
    assert rules() == {
        "workspace": ":4096:8",
        "products": True,
        "convolutions": True,
        "benchmark": False,
        "cudnn": True,
        "algorithms": True,
        "errors": False,  # what has no deterministic kernel is named, and done
        "compiled": True,
    }
    assert precision.facts(GPU) == {"tf32": True, "cudnn_benchmark": False, "deterministic": True}


def test_what_need_not_be_the_same_twice_is_not():
    precision.settle(GPU)
    precision.settle(GPU, exact=False)
    found = rules()
    assert (found["cudnn"], found["algorithms"], found["compiled"]) == (False, False, False)
    assert precision.facts(GPU) == {"tf32": True, "cudnn_benchmark": False, "deterministic": False}


def test_a_workspace_that_somebody_chose_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    precision.settle(GPU)
    assert rules()["workspace"] == ":16:8"


def test_the_facts_are_those_of_now():
    precision.settle(GPU)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = False
    assert precision.facts(GPU) == {"tf32": False, "cudnn_benchmark": False, "deterministic": False}
