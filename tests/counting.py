"""What a program asks of a device, counted without one: torch's meta device stands in for it, and computes nothing."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "is_nonzero", "equal")
MOVES = ("_to_copy", "copy_", "_copy_from", "lift_fresh")
VIEWS = ("detach", "_unsafe_view", "alias", "empty", "lift_fresh")  # of those that make no view by their schema


class Asked(TorchDispatchMode):
    """Counts, while it is entered, what this thread asks of a device:

    launches: operations on it; to it, from it: transfers; waits: questions whose answer the program waits for;
    host: operations on tensors of the CPU. `names` has them by operator.
    """

    def __init__(self, device: str = "meta"):
        super().__init__()
        self.device, self.counts, self.names = device, Counter(), Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name.partition("::")[2]
        given = list(tensors((args, kwargs)))
        if kind := self.kind(name, function, given, kwargs):
            self.counts[kind] += 1
            self.names[f"{kind}: {name}"] += 1
        return function(*args, **kwargs)

    def kind(self, name: str, function: Any, given: list[Tensor], kwargs: dict) -> str | None:
        here = [each.device.type == self.device for each in given]
        target = torch.device(kwargs.get("device") or "cpu").type == self.device
        if name in MOVES and len(set(here)) == 2:  # copy_ from one to the other
            return "to it" if here[0] else "from it"
        if name == "_to_copy" and kwargs.get("device") is not None and here[0] != target:
            return "to it" if target else "from it"
        if name in WAITS:
            return "waits" if any(here) else "host"
        if function._schema.name.startswith("aten::") and (function.is_view or name in VIEWS):
            return None
        return "launches" if any(here) or (not given and target) else "host"


def tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
