"""Names for the matrices of a model, so that adapters can be aimed at some of them.

The model multiplies queries, keys and values with one matrix, and gate and up with another. Papers
and other libraries adapt them one by one; here each is a *part*, a range of rows of its layer:
``blocks.0.attention.q``, ``blocks.0.mlp.up``. A layer that is not fused is a part as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from minillm.adapt.quant_linear import QuantLinear
from minillm.model.attention import Attention
from minillm.model.layers import GatedMLP


@dataclass(frozen=True)
class Part:
    """Rows ``rows`` of the weight of the linear layer called ``layer`` in ``model``."""

    layer: str
    rows: slice

    @property
    def n_rows(self) -> int:
        return self.rows.stop - self.rows.start


def linear_parts(model: nn.Module) -> dict[str, Part]:
    """Every linear layer by its name, and the parts of the fused ones by theirs."""
    parts = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.Linear | QuantLinear):
            parts[name] = Part(name, slice(0, module.out_features))
        elif isinstance(module, Attention):
            parts |= _ranges(prefix, "qkv", dict(zip("qkv", module.sizes, strict=True)))
        elif isinstance(module, GatedMLP):
            width = module.down.in_features
            parts |= _ranges(prefix, "gate_up", {"gate": width, "up": width})
    return parts


def _ranges(prefix: str, layer: str, sizes: dict[str, int]) -> dict[str, Part]:
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[prefix + name] = Part(prefix + layer, slice(start, start + size))
        start += size
    return parts


def find_parts(model: nn.Module, targets: Iterable[str]) -> dict[str, Part]:
    """The parts whose names end in one of ``targets``, such as "attention.q" or "mlp.down".

    Raises:
        ValueError: a target names nothing, or two targets share rows; lists what there is.
    """
    if isinstance(targets, str):
        raise ValueError(f"targets={targets!r} is one text: expected several, as ({targets!r},)")
    known, found = linear_parts(model), {}
    for target in targets:
        hits = {n: p for n, p in known.items() if n == target or n.endswith("." + target)}
        if not hits:
            endings = sorted({".".join(name.split(".")[-2:]) for name in known})
            raise ValueError(f"no layer is called {target!r}; there are {', '.join(endings)}")
        found |= hits
    for name, part in found.items():
        for other_name, other in found.items():
            same_layer = name < other_name and part.layer == other.layer
            if same_layer and max(part.rows.start, other.rows.start) < min(
                part.rows.stop, other.rows.stop
            ):
                raise ValueError(f"{name} and {other_name} are the same rows; name only one")
    return found
