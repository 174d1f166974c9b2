"""A copy of a model that keeps its weights in 8 or 4 bits and decodes faster for it.

A decoding step reads every weight once for each new token: a quarter of the bytes is up to four
times the speed, if the numbers can be widened as fast as they arrive. PyTorch has one such kernel
that runs on any CPU, made for something else. A matrix times a vector is the sum of the matrix's
columns, each times one number of the vector; and a weighted sum of rows of a rounded table is what
an *embedding bag* computes. So the weights are stored as such a table: only they are rounded, the
products and sums stay float32.

Shapes: B rows of inputs, C inputs of a layer, D its outputs, N groups of outputs.
"""

from __future__ import annotations

from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.infer.packed import with_layers
from minillm.model.transformer import Transformer

GROUP = 96  # outputs that share a scale; what the kernel holds in the registers of a core
FEW = 8  # above so many rows it is faster to widen the weights once and multiply
AT_ONCE = 2**19  # weights that are widened at a time: 2 MB
KERNELS = torch.ops.quantized
PACK = {8: KERNELS.embedding_bag_byte_prepack, 4: KERNELS.embedding_bag_4bit_prepack}
UNPACK = {8: KERNELS.embedding_bag_byte_unpack, 4: KERNELS.embedding_bag_4bit_unpack}
BAGS = {
    8: KERNELS.embedding_bag_byte_rowwise_offsets.default,
    4: KERNELS.embedding_bag_4bit_rowwise_offsets.default,
}


def weight_only(model: Transformer, bits: int = 8) -> Transformer:
    """The same model with rounded linear layers, for inference on a CPU.

    Embeddings and norms are shared with `model`; later training of `model` does not reach the
    rounded layers.

    Args:
        bits: 8, or 4 for half the memory and a larger error. Each group of 96 weights has a scale
            and a minimum of its own: 8.67 and 4.33 bits a weight.

    Raises:
        ValueError: other bits, or a model on another device.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits={bits}: there is a kernel for 8 and one for 4")
    if model.device.type != "cpu":
        raise ValueError(f"the model is on {model.device}, the kernel is for CPUs: model.to('cpu')")
    return with_layers(model, partial(WeightOnlyLinear, bits=bits))


class WeightOnlyLinear(nn.Module):
    """A linear layer with rounded weights, for inference: (…, C) → (…, D), float32.

    No gradient passes through it.
    """

    @torch.no_grad()
    def __init__(self, layer: nn.Linear, bits: int = 8):
        super().__init__()
        D, C = layer.weight.shape
        self.bits, self.in_features, self.out_features = bits, C, D
        self.n_groups = -(-D // GROUP)
        padded = F.pad(layer.weight.float(), (0, 0, 0, self.n_groups * GROUP - D))
        # Row n·C + c of the table: what input c contributes to the outputs of group n.
        rows = padded.view(-1, GROUP, C).transpose(1, 2).reshape(-1, GROUP)
        self.register_buffer("table", PACK[bits](rows))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    @property
    def weight(self) -> Tensor:
        """The weight that the codes stand for, float32 (D, C); made anew on every call."""
        groups = self.groups(self.table)
        return groups.transpose(1, 2).reshape(-1, self.in_features)[: self.out_features]

    def groups(self, table: Tensor) -> Tensor:
        """The table, or some groups of it, as numbers: (N, C, GROUP)."""
        return UNPACK[self.bits](table).view(-1, self.in_features, GROUP)

    def forward(self, x: Tensor) -> Tensor:
        few = x.numel() <= FEW * self.in_features
        y = self.sum_rows(x) if few else self.multiply(x)
        return y if self.bias is None else y + self.bias

    def multiply(self, x: Tensor) -> Tensor:
        """(…, C) → (…, D): the weights widened once for all rows, a few groups at a time.

        So they are still in the core's cache when they are multiplied. They stay input by input:
        turning them would take longer than the product.
        """
        rows, C = x.reshape(-1, self.in_features), self.in_features
        n_groups = max(1, AT_ONCE // (GROUP * C))
        parts = [rows @ self.groups(part) for part in self.table.split(n_groups * C)]
        y = torch.cat(parts).transpose(0, 1).reshape(*x.shape[:-1], -1)  # from (N, B, GROUP)
        return y[..., : self.out_features]

    def sum_rows(self, x: Tensor) -> Tensor:
        """(…, C) → (…, D): one bag for each group and row, its weights being the row's numbers."""
        B, N = x.numel() // self.in_features, self.n_groups
        indices, starts = bags(N, self.in_features, B)
        weights = x.reshape(1, -1).expand(N, -1).reshape(-1)
        y = BAGS[self.bits](self.table, indices, starts, False, 0, False, weights, None, False)
        if B > 1:
            y = y.view(N, B, GROUP).transpose(0, 1)
        y = y.reshape(*x.shape[:-1], N * GROUP)
        return y if self.out_features == N * GROUP else y[..., : self.out_features]


@lru_cache(maxsize=64)
def bags(n_groups: int, n_inputs: int, n_rows: int) -> tuple[Tensor, Tensor]:
    """Which rows of the table each bag sums, int32, and where each bag starts.

    A bag sums all rows of its group. The bags of a group, one for each row of inputs, follow each
    other, so that the group is still in the core's cache.
    """
    rows = torch.arange(n_groups * n_inputs, dtype=torch.int32).view(n_groups, 1, n_inputs)
    indices = rows.expand(-1, n_rows, -1).reshape(-1)
    return indices, torch.arange(0, len(indices), n_inputs, dtype=torch.int32)
