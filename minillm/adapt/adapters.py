"""Small learned parts around frozen layers: bottleneck adapters, IA³; and biases alone (BitFit).

Bottleneck adapters (Houlsby et al. 2019, §2.1) put a narrow MLP with a skip behind a layer:

    y = h + W_up · gelu(W_down h + b_down) + b_up,    h = W x + b

IA³ (Liu et al. 2022, §3.3) learns only a factor for every key, value and hidden unit of the MLP.

Shapes: B batch, T time, C inputs of a layer, D outputs, r width of the bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.adapt.parts import find_parts
from minillm.adapt.wrap import WrappedLinear, refuse_wrapped, trainable, wrap

# Behind attention and behind the MLP (Houlsby et al. 2019, figure 2), or behind the MLP alone.
HOULSBY = ("attention.out", "mlp.down")
PFEIFFER = ("mlp.down",)


class BottleneckLinear(WrappedLinear):
    """A frozen linear layer with a bottleneck adapter behind it: (…, C) → (…, D)."""

    is_linear = False  # for its GELU

    def __init__(self, base: nn.Linear, width: int, generator: torch.Generator):
        super().__init__(base)
        D, like = base.out_features, base.weight
        self.down = nn.Linear(D, width, device=like.device, dtype=like.dtype)
        self.up = nn.Linear(width, D, device=like.device, dtype=like.dtype)
        with torch.no_grad():
            # Drawn on the CPU, so that a seed means the same everywhere. `up` starts at zero.
            self.down.weight.copy_(torch.randn(width, D, generator=generator) / math.sqrt(D))
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)
        return h + self.up(F.gelu(self.down(h)))


def add_bottlenecks(
    model: nn.Module,
    width: int = 16,
    targets: Iterable[str] = HOULSBY,
    generator: torch.Generator | None = None,
) -> dict[str, nn.Parameter]:
    """Freeze a model and put bottleneck adapters behind some layers; at first they add nothing.

    Args:
        model: changed in place; `remove_adapters` gives it back.
        width: r; an adapter has 2·r·D + r + D parameters.
        targets: whole layers (see `find_parts`): ``HOULSBY``, ``PFEIFFER`` or others.
        generator: source of the initial ``down``; None starts one at seed 0.

    Returns:
        The parameters that will learn, by name.

    Raises:
        ValueError: a width below 1, a target that names nothing or a part of a fused layer, or a
            model that already has adapters.
    """
    if width < 1:
        raise ValueError(f"width={width}: expected at least 1")
    refuse_wrapped(model)
    generator = generator or torch.Generator().manual_seed(0)
    parts = find_parts(model, targets)
    if split := [name for name, part in parts.items() if name != part.layer]:
        raise ValueError(f"{split[0]} is a part of {parts[split[0]].layer}; name whole layers")
    model.requires_grad_(False)
    for part in parts.values():
        wrap(model, part, BottleneckLinear, width=width, generator=generator)
    return trainable(model)


class ScaledLinear(WrappedLinear):
    """A frozen linear layer, plain or quantised, with learned factors of inputs or outputs."""

    def __init__(self, base: nn.Linear):
        super().__init__(base)
        self.outputs = nn.ParameterDict()  # factors of ranges of rows, by the name of the part
        self.rows: dict[str, slice] = {}
        self.inputs: nn.Parameter | None = None  # (C,)
        self.register_buffer("ones", base.weight.new_ones(base.out_features), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.original is not None:
            return self.base(x)
        y = self.base(x if self.inputs is None else x * self.inputs)
        return y if not self.outputs else y * self.factors()

    def factors(self) -> Tensor:
        """One factor for each output, 1 where none is learned: (D,)."""
        factors = self.ones.clone()
        for name, learned in self.outputs.items():
            factors[self.rows[name]] = learned
        return factors

    def merged(self) -> tuple[Tensor, Tensor | None]:
        factors = self.factors()
        weight = factors[:, None] * self.base.weight
        weight = weight if self.inputs is None else weight * self.inputs
        return weight, None if self.base.bias is None else factors * self.base.bias


def add_ia3(
    model: nn.Module,
    outputs: Iterable[str] = ("attention.k", "attention.v"),
    inputs: Iterable[str] = ("mlp.down",),
) -> dict[str, nn.Parameter]:
    """Freeze a model and learn factors only; all start at 1, which changes nothing.

    Args:
        model: changed in place; `remove_adapters` gives it back, `merge` folds the factors in.
        outputs: parts whose outputs are scaled, bias included: keys and values.
        inputs: layers whose inputs are scaled: before ``mlp.down`` these are the hidden units.

    Returns:
        The parameters that will learn, by name.

    Raises:
        ValueError: a target that names nothing (what there is is listed), no targets at all, or a
            model that already has adapters.
    """
    refuse_wrapped(model)
    output_parts, input_parts = find_parts(model, outputs), find_parts(model, inputs)
    if not output_parts and not input_parts:
        raise ValueError("no targets: name at least one layer whose inputs or outputs are scaled")
    model.requires_grad_(False)
    for name, part in output_parts.items():
        layer, short = wrap(model, part, ScaledLinear), name.rpartition(".")[2]
        layer.outputs[short] = nn.Parameter(layer.weight.new_ones(part.n_rows))
        layer.rows[short] = part.rows
    for part in input_parts.values():
        layer = wrap(model, part, ScaledLinear)
        layer.inputs = nn.Parameter(layer.weight.new_ones(layer.weight.shape[1]))
    return trainable(model)


def train_only(model: nn.Module, endings: Iterable[str] = ("bias",)) -> dict[str, nn.Parameter]:
    """Freeze all but the parameters with these endings; with "bias" this is BitFit.

    (Ben Zaken et al. 2022.) Models without biases, such as Llama, can learn their norms instead:
    ``("attention_norm.weight", "mlp_norm.weight", "norm.weight")``. Nothing is added, so to go
    back keep a copy of the values.

    Returns:
        The parameters that will learn, by name.

    Raises:
        ValueError: an ending that no parameter has; lists what there is.
    """
    names, chosen = [name for name, _ in model.named_parameters()], set()
    for ending in endings:
        hits = {name for name in names if name == ending or name.endswith("." + ending)}
        if not hits:
            known = sorted({".".join(name.split(".")[-2:]) for name in names})
            raise ValueError(f"no parameter ends in {ending!r}; there are {', '.join(known)}")
        chosen |= hits
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return trainable(model)
