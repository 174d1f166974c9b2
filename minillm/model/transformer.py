"""The one Transformer of this course: every model in it is a configuration of this class.

Shapes: B batch, T time, C channels (d_model), V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minillm.model.attention import Attention, causal_mask, document_mask
from minillm.model.cache import KVCache
from minillm.model.config import ModelConfig
from minillm.model.layers import make_mlp, make_norm, rope_angles


class Block(nn.Module):
    """Look around, then think: attention and MLP, each added to the residual stream (pre-norm)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = make_mlp(config)

    def forward(self, x: Tensor, mask=None, rotation=None, cache=None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask, rotation, cache)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """A decoder-only language model (Vaswani et al. 2017; Radford et al. 2019).

    Args:
        config: shape and choices.
        generator: source of the initial weights; None starts one at seed 0.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.embedding = empty_embedding(config.vocab_size, config.d_model)
        if config.position == "learned":
            self.position_embedding = empty_embedding(config.max_length, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config)
        self.unembed = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.unembed.weight = self.embedding.weight
        if self.device.type != "meta":
            self.init_weights(generator or torch.Generator().manual_seed(0))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw all weights: every matrix N(0, 1/n) for its row length n, biases 0, norms 1.

        So every layer starts with outputs as loud as its inputs, at any width; GPT-2's fixed 0.02
        is this rule at a width of 2,500, and drowns the embeddings of a small model. The two
        matrices of a block that write into the residual stream are smaller by √(2·n_layers), so
        that the stream does not grow with depth (Radford et al. 2019, §2.3).
        """
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            std = 1 / math.sqrt(weight.shape[1])
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                std /= math.sqrt(2 * self.config.n_layers)
            # Drawn on the CPU, so that a seed means the same model on every device.
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def forward(
        self, tokens: Tensor, cache: KVCache | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """Scores of the next token at every position.

        Args:
            tokens: int64 (B, T), right-padded where rows differ in length. With a cache these are
                the new tokens only; call ``cache.advance`` afterwards.
            cache: keys and values of earlier tokens.
            documents: int64 (B, T); positions see only those with the same number.

        Returns:
            logits: (B, T, V).

        Raises:
            ValueError: wrong shape or type, a token outside the vocabulary, or too many tokens.
        """
        return self.unembed(self.hidden(tokens, cache, documents))

    def hidden(
        self, tokens: Tensor, cache: KVCache | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """The residual stream after the last norm: (B, T) → (B, T, C)."""
        self._check(tokens, cache, documents)
        T = tokens.shape[1]
        positions = torch.arange(T, device=tokens.device) if cache is None else cache.positions(T)
        if cache is not None and (cache.is_ragged or 1 < T < cache.reach(T)):
            mask = causal_mask(positions, cache.reach(T))
        else:
            mask = None if documents is None else document_mask(documents)
        x = self.embedding(tokens)
        rotation = None
        if self.config.position == "learned":
            # Padding behind a nearly full row has no position of its own; nobody reads it.
            x = x + self.position_embedding(positions.clamp(max=self.config.max_length - 1))
        elif self.config.position == "rope":
            cos, sin = rope_angles(positions, self.config.head_dim, self.config.rope_base)
            rotation = (cos[:, None], sin[:, None]) if positions.dim() == 2 else (cos, sin)
        for block in self.blocks:
            x = block(x, mask, rotation, cache)
        return self.norm(x)

    def _check(self, tokens: Tensor, cache: KVCache | None, documents: Tensor | None) -> None:
        if tokens.dim() != 2 or tokens.dtype != torch.int64 or tokens.numel() == 0:
            raise ValueError(
                f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}: expected int64 (B, T), "
                "with at least one token; add a batch dimension with tokens[None]"
            )
        if cache is not None and cache.batch_size != len(tokens):
            raise ValueError(f"{len(tokens)} rows of tokens, {cache.batch_size} rows in the cache")
        if documents is not None and (cache is not None or documents.shape != tokens.shape):
            raise ValueError("documents need the shape of tokens, and no cache")
        n_context = tokens.shape[1] if cache is None else max(cache.reach(0) + 1, tokens.shape[1])
        if self.config.position == "learned" and n_context > self.config.max_length:
            raise ValueError(
                f"{n_context} tokens, but the model has learned {self.config.max_length} positions;"
                " shorten the text or build the model with a larger max_length"
            )
        if tokens.device.type == "cpu" and not 0 <= tokens.min() <= tokens.max() < (
            self.config.vocab_size
        ):
            raise ValueError(
                f"token ids run from {tokens.min()} to {tokens.max()}: expected 0 to "
                f"{self.config.vocab_size - 1}; was the text encoded with this model's tokenizer?"
            )

    def n_parameters(self, embeddings: bool = True) -> int:
        """Number of weights, tied ones counted once; without the two embeddings if asked."""
        skip = set() if embeddings else {self.embedding.weight, self.unembed.weight}
        if not embeddings and self.config.position == "learned":
            skip.add(self.position_embedding.weight)
        return sum(p.numel() for p in self.parameters() if p not in skip)

    def flops(self, n_tokens: int, context: int = 0) -> int:
        """Multiply-adds times two of one forward pass, matrix products only.

        Args:
            n_tokens: new tokens of one row.
            context: tokens that are already in the cache.
        """
        c = self.config
        matrices = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        # Each new token meets the context and itself and the new tokens before it.
        pairs = n_tokens * context + n_tokens * (n_tokens + 1) // 2
        return 2 * matrices * n_tokens + 4 * c.n_layers * c.n_heads * c.head_dim * pairs

    def kv_bytes(self, n_tokens: int, dtype: torch.dtype = torch.float32) -> int:
        """Bytes a cache needs for ``n_tokens`` tokens of one row."""
        c = self.config
        return 2 * c.n_layers * c.n_kv_heads * c.head_dim * n_tokens * dtype.itemsize

    def save(self, path: str | Path) -> None:
        """Write weights and configuration into one safetensors file, whole or not at all."""
        path = Path(path)
        weights = {k: v.detach().contiguous() for k, v in self.state_dict().items()}
        if self.config.tie_embeddings:
            del weights["unembed.weight"]
        config = json.dumps(dataclasses.asdict(self.config))
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            save_file(weights, temporary, metadata={"config": config})
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Transformer:
        """Read a model that ``save`` wrote. Weights come back in float32.

        Raises:
            ValueError: the file is not one of ours, or its tensors do not fit its configuration.
        """
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                config = ModelConfig(**json.loads((file.metadata() or {})["config"]))
                weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"{path} is not a model written by Transformer.save: {error}"
            ) from error
        return cls.from_weights(config, weights)

    @classmethod
    def from_weights(cls, config: ModelConfig, weights: dict[str, Tensor]) -> Transformer:
        """Build a model around the given tensors, without copying or initialising anything.

        Raises:
            ValueError: lists every missing, surplus and mis-shaped tensor.
        """
        with torch.device("meta"):
            model = cls(config)
        expected = model.state_dict()
        if config.tie_embeddings:
            del expected["unembed.weight"]
        check_tensors({k: tuple(v.shape) for k, v in expected.items()}, weights)
        model.load_state_dict(weights, strict=False, assign=True)
        if config.tie_embeddings:
            model.unembed.weight = model.embedding.weight
        return model


def empty_embedding(n: int, width: int) -> nn.Embedding:
    """An embedding for ``init_weights`` or a file to fill.

    PyTorch's own would draw numbers that nobody keeps, and drawing on the meta device makes it
    import its compiler first, which takes longer than loading a model.
    """
    return nn.Embedding.from_pretrained(torch.empty(n, width), freeze=False)


def check_tensors(expected: dict[str, tuple[int, ...]], weights: dict[str, Tensor]) -> None:
    """Raise one ValueError naming every tensor that is missing, surplus or mis-shaped."""
    problems = [f"missing {name}" for name in sorted(expected.keys() - weights.keys())]
    problems += [f"surplus {name}" for name in sorted(weights.keys() - expected.keys())]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {expected[name]}"
        for name in sorted(expected.keys() & weights.keys())
        if tuple(weights[name].shape) != expected[name]
    ]
    if problems:
        raise ValueError("the weights do not fit the configuration: " + "; ".join(problems))
