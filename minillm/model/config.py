"""The one description of a Transformer: every field is a concept the course teaches.

A plain decoder needs the first dozen fields. The others are the choices that tell published models
apart; three ideas with numbers of their own (`Rope`, `MoE`, `Latent`) are small classes here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

CHOICES = {
    "position": ("learned", "rope", "alibi", "relative", "none"),
    "norm": ("layer", "rms"),
    "norm_place": ("pre", "post", "sandwich", "output"),
    "residual": ("sequential", "parallel", "parallel_one_norm"),
    "mlp": ("gelu", "gelu_tanh", "relu", "swiglu", "geglu", "geglu_tanh"),
    "mask": ("causal", "prefix", "bidirectional"),
    "qk_norm": ("none", "head", "all"),
}
GATED_MLPS = ("swiglu", "geglu", "geglu_tanh")


@dataclass(frozen=True)
class RopeScaling:
    """Slower rotations, so that a model reads texts longer than those it was trained on.

    ``kind``: "linear" slows every pair by ``factor`` (Chen et al. 2023); "ntk" raises the base
    instead, which leaves the fast pairs alone; "yarn" (Peng et al. 2023, §3.2) and "llama3"
    (Grattafiori et al. 2024, §3.4) slow only pairs that turn fewer than ``slow_turns`` times over
    ``original_length``, keep those above ``fast_turns`` and blend between; "longrope" (Ding et al.
    2024) divides the speed of pair i by ``factors[i]``. ``attention_factor`` multiplies cosine and
    sine.
    """

    kind: str
    factor: float = 1.0
    original_length: int = 0
    slow_turns: float = 1.0
    fast_turns: float = 32.0
    factors: tuple[float, ...] = ()
    attention_factor: float = 1.0

    def __post_init__(self):
        kinds = ("linear", "ntk", "yarn", "llama3", "longrope")
        if self.kind not in kinds:
            raise ValueError(f"rope scaling kind={self.kind!r}: expected one of {kinds}")
        if self.kind in ("yarn", "llama3") and self.original_length < 1:
            raise ValueError(
                f"{self.kind} scaling needs original_length, the length the model was trained on"
            )
        if self.factor < 1:
            raise ValueError(f"rope scaling factor={self.factor}: expected at least 1")


@dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al. 2021): pairs of channels turn with the position.

    ``fraction`` of each head's channels turn, the first ones. ``pairs``: "half" joins channel i
    with i + D/2, "interleaved" joins 2i with 2i + 1. ``skip_layers`` use no positions at all.
    """

    base: float = 10_000.0
    fraction: float = 1.0
    pairs: str = "half"
    scaling: RopeScaling | None = None
    skip_layers: tuple[int, ...] = ()

    def __post_init__(self):
        if self.pairs not in ("half", "interleaved"):
            raise ValueError(f"rope pairs={self.pairs!r}: expected 'half' or 'interleaved'")
        if self.base <= 0 or not 0 < self.fraction <= 1:
            raise ValueError(
                f"rope base={self.base}, fraction={self.fraction}: expected a positive base and a "
                "fraction above 0 and at most 1"
            )


@dataclass(frozen=True)
class MoE:
    """Mixture of experts: ``n_active`` of ``n_experts`` MLPs of width ``d_expert`` a token.

    A shared MLP of width ``d_shared`` serves every token, behind a learned gate if
    ``shared_gate``. Router scores are a "softmax" (Mixtral) or "sigmoid" (DeepSeek-V3);
    ``renormalize`` makes the chosen weights sum to 1, then ``scale`` multiplies them. With groups,
    only experts of the best ``n_active_groups`` of ``n_groups`` can be chosen. ``balance_bias``
    adds a bias to the choice, not to the weights (Wang et al. 2024). ``capacity`` limits an expert
    to that many times its fair share of the tokens; the rest are dropped. ``dense_layers`` keep
    the ordinary MLP.
    """

    n_experts: int
    n_active: int
    d_expert: int
    d_shared: int = 0
    shared_gate: bool = False
    scores: str = "softmax"
    renormalize: bool = True
    scale: float = 1.0
    n_groups: int = 1
    n_active_groups: int = 1
    balance_bias: bool = False
    capacity: float | None = None
    dense_layers: tuple[int, ...] = ()

    def __post_init__(self):
        if not 1 <= self.n_active <= self.n_experts or self.d_expert < 1 or self.d_shared < 0:
            raise ValueError(
                f"n_active={self.n_active}, n_experts={self.n_experts}, d_expert={self.d_expert}: "
                "expected 1 ≤ n_active ≤ n_experts and a positive width"
            )
        if self.scores not in ("softmax", "sigmoid"):
            raise ValueError(f"router scores={self.scores!r}: expected 'softmax' or 'sigmoid'")
        if self.n_experts % self.n_groups or not 1 <= self.n_active_groups <= self.n_groups:
            raise ValueError(
                f"n_groups={self.n_groups}, n_active_groups={self.n_active_groups}: groups must "
                f"divide n_experts={self.n_experts} evenly, and the active ones be among them"
            )
        if self.n_active > self.n_active_groups * (self.n_experts // self.n_groups):
            raise ValueError(
                f"n_active={self.n_active} experts do not fit into {self.n_active_groups} groups "
                f"of {self.n_experts // self.n_groups}"
            )
        if self.capacity is not None and self.capacity <= 0:
            raise ValueError(f"capacity={self.capacity}: expected a positive factor, or None")


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, §2.1): keys and values from a short latent.

    ``kv_rank`` numbers a token are cached for all heads, and ``rope_dim`` rotary ones. Queries
    come through a latent of ``q_rank``, or straight from the stream if it is None. The model's
    ``head_dim`` counts the channels without positions; ``value_dim`` defaults to the same.
    """

    kv_rank: int
    rope_dim: int
    q_rank: int | None = None
    value_dim: int | None = None

    def __post_init__(self):
        if self.kv_rank < 1 or self.rope_dim < 2 or self.rope_dim % 2:
            raise ValueError(
                f"kv_rank={self.kv_rank}, rope_dim={self.rope_dim}: expected a positive rank and "
                "an even, positive number of rotary channels"
            )


@dataclass(frozen=True)
class ModelConfig:
    """Shape and choices of a Transformer, checked once, when it is built.

    Fields left at None are filled in: ``n_kv_heads`` with ``n_heads``, ``head_dim`` with
    ``d_model // n_heads``, ``d_ff`` with ``4 * d_model`` (``8 / 3 * d_model`` rounded up to a
    multiple of 8 for a gated MLP, which has three matrices instead of two), and ``qkv_bias`` and
    ``norm_bias`` with ``bias``.

    Raises:
        ValueError: a field is out of range or unknown, or two fields contradict each other.
    """

    # Size
    vocab_size: int
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int | None = None
    head_dim: int | None = None
    d_ff: int | None = None
    max_length: int = 256
    # What each position knows about the others
    position: str = "learned"
    rope: Rope = Rope()
    mask: str = "causal"
    window: int | None = None  # a query sees this many positions, itself included
    global_layers: tuple[int, ...] = ()  # layers without the window
    cross_attention: bool = False  # the decoder of an encoder–decoder
    # Attention
    latent: Latent | None = None
    qk_norm: str = "none"  # over each head's channels, or over all of them at once
    attention_scale: float | None = None  # None: 1 / √head_dim
    alibi_scale: float = 1.0  # multiplies ALiBi's slopes
    attention_softcap: float | None = None  # c: scores become c · tanh(scores / c)
    # Block
    norm: str = "layer"
    norm_eps: float = 1e-5
    norm_place: str = "pre"
    residual: str = "sequential"
    mlp: str = "gelu"
    moe: MoE | None = None
    bias: bool = True
    qkv_bias: bool | None = None
    norm_bias: bool | None = None
    # Ends
    tie_embeddings: bool = True
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    mlm_head: bool = False  # BERT's extra layer before the output
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    n_future: int = 0  # extra modules that predict further tokens (DeepSeek-V3, §2.2)

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "max_length"):
            _require(isinstance(getattr(self, name), int) and getattr(self, name) > 0, self, name)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {known}")
        _fill(self, "n_kv_heads", self.n_heads)
        if self.head_dim is None and self.d_model % self.n_heads:
            raise ValueError(
                f"d_model={self.d_model} is not divisible by n_heads={self.n_heads}; "
                "change one of them or set head_dim"
            )
        _fill(self, "head_dim", self.d_model // self.n_heads)
        gated_width = -(-8 * self.d_model // 3 // 8) * 8
        _fill(self, "d_ff", gated_width if self.mlp in GATED_MLPS else 4 * self.d_model)
        _fill(self, "qkv_bias", self.bias)
        _fill(self, "norm_bias", self.bias)
        for name in ("n_kv_heads", "head_dim", "d_ff", "norm_eps", "alibi_scale"):
            _require(getattr(self, name) > 0, self, name)
        for name in ("window", "attention_scale", "attention_softcap", "logit_softcap"):
            _require(getattr(self, name) is None or getattr(self, name) > 0, self, name)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}; "
                "every key/value head serves the same number of query heads"
            )
        if self.position == "rope" and self.rope_dim % 2:
            raise ValueError(
                f"rope turns pairs of channels, and head_dim={self.head_dim} with rope.fraction="
                f"{self.rope.fraction} gives {self.rope_dim}, an odd number"
            )
        if self.latent and (self.position != "rope" or self.qk_norm != "none" or self.window):
            raise ValueError("latent attention needs position='rope', no qk_norm and no window")
        if self.window and self.position in ("alibi", "relative"):
            raise ValueError(f"a window and position={self.position!r} do not go together")
        if self.residual != "sequential" and self.norm_place != "pre":
            raise ValueError(
                f"residual={self.residual!r} needs norm_place='pre', not {self.norm_place!r}"
            )
        if self.cross_attention and (self.residual, self.norm_place) != ("sequential", "pre"):
            raise ValueError("cross_attention needs a sequential residual and norm_place='pre'")

    @property
    def rope_dim(self) -> int:
        """How many channels of each head turn."""
        return self.latent.rope_dim if self.latent else int(self.head_dim * self.rope.fraction)

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """What a cache holds of one token in one layer: heads, key width, value width."""
        if self.latent:
            return 1, self.latent.kv_rank + self.latent.rope_dim, 0
        return self.n_kv_heads, self.head_dim, self.head_dim

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dictionaries, as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        """The configuration that ``to_dict`` described.

        Raises:
            ValueError: an unknown field, or one out of range.
        """
        fields = dict(fields)
        rope = dict(fields.pop("rope", {}))
        if rope.get("scaling"):
            rope["scaling"] = _build(RopeScaling, rope["scaling"])
        parts = {"rope": _build(Rope, rope)}
        for name, part in (("moe", MoE), ("latent", Latent)):
            parts[name] = _build(part, fields.pop(name)) if fields.get(name) else None
        return _build(cls, {**fields, **parts})


def _build(part: type, fields: dict[str, Any]) -> Any:
    """A dataclass from JSON, where tuples have become lists."""
    unknown = fields.keys() - {field.name for field in dataclasses.fields(part)}
    if unknown:
        raise ValueError(f"{part.__name__} has no fields {sorted(unknown)}")
    return part(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


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
