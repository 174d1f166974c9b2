"""The one description of a Transformer: about twenty fields, each a concept the course teaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

POSITIONS = ("learned", "rope", "none")
NORMS = ("layer", "rms")
MLPS = ("gelu", "gelu_tanh", "swiglu")


@dataclass(frozen=True)
class ModelConfig:
    """Shape and choices of a decoder-only Transformer, checked once, when it is built.

    Fields left at None are filled in: ``n_kv_heads`` with ``n_heads``, ``head_dim`` with
    ``d_model // n_heads`` and ``d_ff`` with ``4 * d_model`` (``8 / 3 * d_model`` rounded up to a
    multiple of 8 for SwiGLU, which has three matrices instead of two).

    Raises:
        ValueError: a field is out of range or unknown, or two fields contradict each other.
    """

    vocab_size: int
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int | None = None
    head_dim: int | None = None
    d_ff: int | None = None
    max_length: int = 256
    position: str = "learned"
    rope_base: float = 10_000.0
    norm: str = "layer"
    norm_eps: float = 1e-5
    mlp: str = "gelu"
    bias: bool = True
    tie_embeddings: bool = True

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "max_length"):
            _require(isinstance(getattr(self, name), int) and getattr(self, name) > 0, self, name)
        _fill(self, "n_kv_heads", self.n_heads)
        if self.head_dim is None and self.d_model % self.n_heads:
            raise ValueError(
                f"d_model={self.d_model} is not divisible by n_heads={self.n_heads}; "
                "change one of them or set head_dim"
            )
        _fill(self, "head_dim", self.d_model // self.n_heads)
        gated_width = -(-8 * self.d_model // 3 // 8) * 8
        _fill(self, "d_ff", gated_width if self.mlp == "swiglu" else 4 * self.d_model)
        for name in ("n_kv_heads", "head_dim", "d_ff"):
            _require(isinstance(getattr(self, name), int) and getattr(self, name) > 0, self, name)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}; "
                "every key/value head serves the same number of query heads"
            )
        for name, known in (("position", POSITIONS), ("norm", NORMS), ("mlp", MLPS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {known}")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} is odd; rope turns pairs of channels, use an even size"
            )
        _require(self.norm_eps > 0, self, "norm_eps")
        _require(self.rope_base > 0, self, "rope_base")


def _require(holds: bool, config: ModelConfig, name: str) -> None:
    if not holds:
        raise ValueError(f"{name}={getattr(config, name)!r}: expected a positive number")


def _fill(config: ModelConfig, name: str, value: Any) -> None:
    """Set a field that was left at None (the dataclass is frozen, hence object.__setattr__)."""
    if getattr(config, name) is None:
        object.__setattr__(config, name, value)


def gpt2_config(vocab_size: int, **changes) -> ModelConfig:
    """GPT-2's choices (Radford et al. 2019, §2.3): learned positions, LayerNorm, GELU, biases."""
    return ModelConfig(**{"vocab_size": vocab_size, "mlp": "gelu_tanh", **changes})


def llama_config(vocab_size: int, **changes) -> ModelConfig:
    """LLaMA's choices (Touvron et al. 2023, §2.2): RoPE, RMSNorm, SwiGLU, no biases."""
    llama = {"position": "rope", "norm": "rms", "mlp": "swiglu", "bias": False}
    return ModelConfig(**{"vocab_size": vocab_size, **llama, "tie_embeddings": False, **changes})
