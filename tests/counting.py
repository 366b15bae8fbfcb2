"""What a program asks of a device, counted without one.

Torch's meta device stands in for it, and computes nothing; or the processor itself, where a program must know answers.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "is_nonzero", "equal")
WAITS += ("_linalg_check_errors", "repeat_interleave")
INDEXES = ("index", "index_put", "index_put_", "_index_put_impl_")  # which wait where a mask says what is meant
READS = ("tolist", "numpy")
MOVES = ("_to_copy", "copy_", "_copy_from", "lift_fresh")
VIEWS = ("detach", "_unsafe_view", "alias", "empty", "lift_fresh")  # of those that make no view by their schema

CASTS = {"conv2d": torch.bfloat16, "linear": torch.bfloat16, "group_norm": torch.float32}  # of autocast on a GPU


class Asked(TorchDispatchMode):
    """Counts, while it is entered, what this thread asks of a device:

    launches: operations on it; to it, from it: transfers; waits: questions whose answer the program waits for;
    host: operations on tensors of the CPU. `names` has them by operator.
    """

    def __init__(self, device: str = "meta"):
        super().__init__()
        self.device, self.counts, self.names = device, Counter(), Counter()
        self.reads = _Reads(self)

    def __enter__(self) -> Self:
        self.reads.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.reads.__exit__(*error)

    def count(self, kind: str, name: str) -> None:
        self.counts[kind] += 1
        self.names[f"{kind}: {name}"] += 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name.partition("::")[2]
        given = list(tensors((args, kwargs)))
        if kind := self.kind(name, function, given, kwargs):
            self.count(kind, name)
        return function(*args, **kwargs)

    def kind(self, name: str, function: Any, given: list[Tensor], kwargs: dict) -> str | None:
        here = [each.device.type == self.device for each in given]
        target = torch.device(kwargs.get("device") or "cpu").type == self.device
        if name in MOVES and len(set(here)) == 2:  # copy_ from one to the other
            return "to it" if here[0] else "from it"
        if name == "_to_copy" and kwargs.get("device") is not None and here[0] != target:
            return "to it" if target else "from it"
        if name == "lift_fresh" and all(here):  # what torch.tensor has made of plain numbers
            return "to it"
        masks = name in INDEXES and any(each.dtype in (torch.bool, torch.uint8) for each in given[1:])
        if name in WAITS or masks or kwargs.get("check_errors"):
            return "waits" if any(here) else "host"
        if function._schema.name.startswith("aten::") and (function.is_view or name in VIEWS):
            return None
        return "launches" if any(here) or (not given and target) else "host"


class _Reads(TorchFunctionMode):
    """Counts the values that go to Python or numpy: operators do not show it on a processor."""

    def __init__(self, asked: Asked):
        super().__init__()
        self.asked = asked

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(function, "__name__", "")) in READS and args[0].device.type == self.asked.device:
            self.asked.count("waits", name)
        return function(*args, **(kwargs or {}))


def tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


class Autocast(TorchFunctionMode):
    """What torch's autocast to bfloat16 does on a GPU to the layers of our networks, where there is none of it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kind := CASTS.get(getattr(function, "__name__", "")):
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(kind), (args, kwargs))
        return function(*args, **kwargs)


def kept(network: torch.nn.Module, *given: Tensor) -> int:
    """Bytes that the backward pass of a network keeps of what it was given; weights, and their copies in bfloat16, are
    not counted."""
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(*given)
    for parameter in network.parameters():
        storages.pop(parameter.untyped_storage()._cdata, None)
    copies = sum(2 * parameter.numel() for parameter in network.parameters() if parameter.ndim > 1)
    return sum(storage.nbytes() for storage in storages.values()) - copies
