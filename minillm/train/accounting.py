"""What a training step costs, counted before it runs: FLOPs, bytes, and how well time is used.

B batch, T time.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from minillm.model.config import ModelConfig
from minillm.model.transformer import Transformer
from minillm.train.memory import TensorMemory
from minillm.train.recompute import checkpoint_blocks


def training_flops(
    model: Transformer, batch_size: int, length: int, recompute: bool = False
) -> int:
    """Multiply-adds times two of one step's matrix products on (B, T) tokens.

    The backward pass makes two products for each of the forward pass: one for the gradient of the
    weights, one for that of the inputs.

    Args:
        recompute: count the forward pass twice, which is what `checkpoint_blocks` comes close to.
            Utilisation is measured without: work that is done twice is no progress (Chowdhery et
            al. 2022, appendix B).
    """
    return (4 if recompute else 3) * batch_size * model.flops(length)


def utilisation(flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilisation, MFU: the share of the device's peak FLOP/s that is progress.

    Raises:
        ValueError: no time, or no peak.

    Source: Chowdhery et al. 2022 (PaLM), §4.1 and appendix B.
    """
    if seconds <= 0 or peak <= 0:
        raise ValueError(f"seconds={seconds}, peak={peak}: expected both above 0")
    return flops / seconds / peak


@dataclass(frozen=True)
class StateBytes:
    """What one process keeps from step to step, in bytes."""

    weights: float
    gradients: float
    optimizer: float  # with mixed precision, the float32 copy of the weights is among it

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer


def state_bytes(
    n_parameters: float, *, precision: str = "mixed", stage: int = 0, n_processes: int = 1
) -> StateBytes:
    """Weights, gradients and AdamW's averages, as ZeRO spreads them over processes.

    Stage 1 cuts the optimiser's state into one part for each process, stage 2 the gradients too,
    stage 3 (fully sharded) the weights too.

    Args:
        precision: "mixed": weights and gradients in 16 bits, and a copy of the weights and two
            averages in 32, 16 bytes for a parameter; "fp32": all four in 32 bits, 16 bytes again.

    Raises:
        ValueError: an unknown precision or stage, or no process.

    Source: Rajbhandari et al. 2020, "ZeRO", §3.1 and §5.
    """
    if precision not in ("mixed", "fp32"):
        raise ValueError(f"precision={precision!r}: expected 'mixed' or 'fp32'")
    if stage not in (0, 1, 2, 3) or n_processes < 1:
        raise ValueError(f"stage={stage}, n_processes={n_processes}: expected 0 to 3, at least 1")
    weights, gradients, optimizer = (2, 2, 12) if precision == "mixed" else (4, 4, 8)

    def share(from_stage: int) -> float:
        return n_parameters / (n_processes if stage >= from_stage else 1)

    return StateBytes(weights * share(3), gradients * share(2), optimizer * share(1))


def activation_bytes(
    config: ModelConfig, batch_size: int, length: int, recompute: bool = False
) -> int:
    """Bytes that the forward pass of one step keeps for the backward pass, logits among them.

    In float32, and measured on the meta device, where tensors have shapes and no numbers: a model
    of any size takes a moment. Attention's kernel there keeps its T × T weights, which a fused
    kernel does not: B·H·T²·4 bytes too many in each of its layers.

    Args:
        recompute: with `checkpoint_blocks`.
    """
    with torch.device("meta"):
        model = Transformer(config)
        tokens = torch.zeros(batch_size, length, dtype=torch.int64)
    if recompute:
        checkpoint_blocks(model)
    with TensorMemory(model, tokens) as memory:
        before = memory.live
        loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        return memory.live - before - loss.nbytes
