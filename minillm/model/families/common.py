"""What families share when they read and write ``config.json``."""

from __future__ import annotations

import math
from typing import Any

from minillm.model.config import ModelConfig, Rope, RopeScaling

GATED_ACTIVATIONS = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_new": "geglu_tanh",
    "gelu_pytorch_tanh": "geglu_tanh",
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


# Our sizes, and what most families call them.
SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "max_length": "max_position_embeddings",
}


class Fields(dict):
    """The fields of a ``config.json``; one that a family cannot do without is asked for with []."""

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"config.json has no {name!r}, which a {self.get('model_type')} needs")


def read_sizes(published: dict) -> dict[str, int]:
    return {ours: published[theirs] for ours, theirs in SIZES.items()}


def write_sizes(config: ModelConfig) -> dict[str, int]:
    return {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}


def expect(published: dict, **values: Any) -> None:
    """Refuse a setting that the family knows and we do not: it must be absent, off or as given."""
    for name, value in values.items():
        found = published.get(name)
        if found is not None and found != value:
            raise ValueError(
                f"config.json has {name}={found!r}: only {value!r} is supported for a "
                f"{published.get('model_type')}"
            )


def activation(published: dict, name: str, known: dict[str, str] = ACTIVATIONS) -> str:
    """Our name of the activation in the field ``name``."""
    if published[name] not in known:
        raise ValueError(f"config.json has {name}={published[name]!r}; known are {sorted(known)}")
    return known[published[name]]


def published_activation(mlp: str) -> str:
    """The name `transformers` has for the activation of one of our MLPs."""
    names = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_pytorch_tanh"}
    return names.get(mlp) or {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}[mlp]


def read_rope(
    published: dict, base: float = 10_000.0, fraction: float = 1.0, **choices: Any
) -> Rope:
    """Rotary positions from ``rope_parameters`` (version 5) or from the keys of older files.

    Args:
        base, fraction: what the family takes when the file says nothing.
        choices: further fields of the Rope.
    """
    rope = {**(published.get("rope_scaling") or {}), **(published.get("rope_parameters") or {})}
    if any(isinstance(value, dict) for value in rope.values()):
        raise ValueError(
            f"config.json has other rotations per kind of layer, not supported: {rope}"
        )
    for name, default in (("rope_theta", base), ("partial_rotary_factor", fraction)):
        if rope.get(name) is None:
            rope[name] = default if published.get(name) is None else published[name]
    return Rope(
        base=float(rope["rope_theta"]),
        fraction=rope["partial_rotary_factor"],
        scaling=read_scaling(rope, published),
        **choices,
    )


def read_scaling(rope: dict, published: dict) -> RopeScaling | None:
    """How the rotations are slowed, if they are."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    longest = published["max_position_embeddings"]
    original = (
        published.get("original_max_position_embeddings")
        or rope.get("original_max_position_embeddings")
        or longest
    )
    factor = rope.get("factor") or longest / original
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind == "llama3":
        slow, fast = rope["low_freq_factor"], rope["high_freq_factor"]
        return RopeScaling("llama3", factor, original, slow, fast)
    if kind == "yarn" and rope.get("truncate", True):
        slow, fast = rope.get("beta_slow") or 1.0, rope.get("beta_fast") or 32.0
        attention_factor = yarn_attention_factor(rope, factor)
        return RopeScaling("yarn", factor, original, slow, fast, (), attention_factor)
    if kind in ("longrope", "su"):
        return read_longrope(rope, longest, original, factor)
    raise ValueError(f"config.json scales its rotations in a way we cannot: {rope}")


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's 0.1 · ln(factor) + 1 (Peng et al. 2023, eq. 22), weighted as DeepSeek does."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1


def yarn_attention_factor(rope: dict, factor: float) -> float:
    """What cosine and sine are multiplied by: DeepSeek moves most of it into the scores' scale."""
    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]
    weight, weight_all = rope.get("mscale"), rope.get("mscale_all_dim")
    if weight and weight_all:
        return yarn_mscale(factor, weight) / yarn_mscale(factor, weight_all)
    return yarn_mscale(factor)


def read_longrope(rope: dict, longest: int, original: int, factor: float) -> RopeScaling:
    """LongRoPE has one set of factors for short texts and one for long ones.

    The set is chosen once, by the length the model is configured for: a rotation that changes
    while a text grows would not fit the keys that are already cached.
    """
    factors = tuple(rope["long_factor" if longest > original else "short_factor"])
    attention_factor = rope.get("attention_factor")
    if attention_factor is None:
        larger = math.log(factor) / math.log(original) if factor > 1 else 0.0
        attention_factor = math.sqrt(1 + larger)
    return RopeScaling(
        "longrope", original_length=original, factors=factors, attention_factor=attention_factor
    )


def write_rope(rope: Rope) -> dict:
    """The fields of ``config.json`` that every version of `transformers` reads."""
    fields = {"rope_theta": rope.base}
    if rope.fraction != 1:
        fields["partial_rotary_factor"] = rope.fraction
    if rope.scaling:
        fields["rope_scaling"] = {"rope_theta": rope.base, **write_scaling(rope.scaling)}
    return fields


def write_scaling(scaling: RopeScaling) -> dict:
    fields: dict[str, Any] = {"rope_type": scaling.kind}
    if scaling.kind == "longrope":
        factors = list(scaling.factors)
        fields |= {"short_factor": factors, "long_factor": factors}
    else:
        fields["factor"] = scaling.factor
    if scaling.kind in ("longrope", "yarn"):
        fields["attention_factor"] = scaling.attention_factor
    names = {"yarn": ("beta_slow", "beta_fast"), "llama3": ("low_freq_factor", "high_freq_factor")}
    if scaling.kind in names:
        slow, fast = names[scaling.kind]
        fields |= {slow: scaling.slow_turns, fast: scaling.fast_turns}
    if scaling.kind != "linear":
        fields["original_max_position_embeddings"] = scaling.original_length
    return fields
