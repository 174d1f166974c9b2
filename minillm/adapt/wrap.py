"""Change a layer from outside: a wrapper takes its place in the model and holds it as ``base``.

The model's own code knows nothing of it, and taking the wrapper off gives the model back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minillm.adapt.parts import Part
from minillm.adapt.quant_linear import QuantLinear


class WrappedLinear(nn.Module):
    """A frozen linear layer, plain or quantised, with something learned around it.

    Subclasses say what in `forward`.
    Those whose whole effect is another weight also give `merged`, and can then be folded in; the
    others say so with ``is_linear = False``.
    """

    is_linear = True

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.original: tuple[Tensor, Tensor | None] | None = None  # while it is merged

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def like(self, n_rows: int) -> Tensor:
        """(n_rows, C) of the weight's type and device; no numbers, no memory, nothing unpacked."""
        if isinstance(self.base, QuantLinear):
            one = torch.empty(1, device=self.base.codes.device)
        else:
            one = self.base.weight.new_empty(1)
        return one.expand(n_rows, self.base.in_features)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Weight (D, C) and bias (D,) of the plain layer that computes the same."""
        raise NotImplementedError

    def refuse_merge(self) -> None:
        """Raise a ValueError if the layer cannot take in what was learned."""
        if not self.is_linear:
            raise ValueError(f"a {type(self).__name__} is not linear and cannot be merged")
        if isinstance(self.base, QuantLinear):
            raise ValueError("a quantised layer cannot take in an update: dequantise it first")

    @torch.no_grad()
    def merge(self) -> None:
        """Fold what was learned into the layer; it is then as fast as before.

        Raises:
            ValueError: the layer is not linear, or quantised: levels have no room for an update.
        """
        self.refuse_merge()
        if self.original is None:
            weight, bias = self.merged()
            self.original = tuple(
                None if old is None else old.detach().clone()
                for old in (self.base.weight, self.base.bias)
            )
            self._set(weight, bias)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Undo `merge`, exactly."""
        if self.original is not None:
            self._set(*self.original)
            self.original = None

    def _set(self, weight: Tensor, bias: Tensor | None) -> None:
        self.base.weight.copy_(weight)
        if bias is not None:
            self.base.bias.copy_(bias)


def wrapped_layers(model: nn.Module) -> dict[str, WrappedLinear]:
    """The layers that are changed from outside, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, WrappedLinear)}


def refuse_wrapped(model: nn.Module) -> None:
    """Raise a ValueError if some layers are already changed."""
    if wrapped_layers(model):
        raise ValueError("the model already has adapters; merge and remove them first")


def wrap(model: nn.Module, part: Part, kind: type[WrappedLinear], **settings) -> WrappedLinear:
    """The ``kind`` of wrapper around a part's layer; put there if it is not there yet."""
    layer = model.get_submodule(part.layer)
    if not isinstance(layer, WrappedLinear):
        layer = kind(layer, **settings)
        model.set_submodule(part.layer, layer)
    return layer


def merge(model: nn.Module) -> None:
    """Fold all adapters into their weights, or none if one of them cannot be folded in.

    Raises:
        ValueError: a layer is quantised, or not linear; the model is then unchanged.
    """
    layers = wrapped_layers(model).values()
    for layer in layers:
        layer.refuse_merge()
    for layer in layers:
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Take all adapters out of their weights again, exactly."""
    for layer in wrapped_layers(model).values():
        layer.unmerge()


def remove_adapters(model: nn.Module) -> None:
    """Give the plain layers back: with the updates if they are merged, else as they were."""
    for name, layer in wrapped_layers(model).items():
        model.set_submodule(name, layer.base)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
