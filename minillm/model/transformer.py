"""The one Transformer of this course: every model in it is a configuration of this class.

Shapes: B batch, T time, C channels (d_model), V vocabulary.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minillm.model.blocks import make_block
from minillm.model.cache import KVCache
from minillm.model.config import ModelConfig
from minillm.model.layers import activation, make_norm
from minillm.model.masks import Memory, View, visible, window_mask
from minillm.model.moe import MoELayer
from minillm.model.mtp import MTPModule
from minillm.model.positions import (
    RELATIVE_BUCKETS,
    alibi_bias,
    relative_buckets,
    rope_angles,
)

# The matrices of a block that write into the residual stream.
WRITERS = ("attention.out.weight", "mlp.down.weight", "experts.down", "shared.down.weight")


class Transformer(nn.Module):
    """A stack of blocks between an embedding and an output (Vaswani et al. 2017).

    A decoder, or an encoder if ``config.mask`` is "bidirectional"; `EncoderDecoder` joins two.

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
        elif config.position == "relative":
            self.relative_bias = empty_embedding(RELATIVE_BUCKETS, config.n_heads)
        if config.embedding_norm:
            self.embedding_norm = make_norm(config)
        self.blocks = nn.ModuleList(make_block(config, layer) for layer in range(config.n_layers))
        # Post-norm blocks end with a norm of their own.
        self.norm = nn.Identity() if config.norm_place == "post" else make_norm(config)
        self.unembed = make_unembedding(config)
        self.tie_weights()
        if config.n_future:
            self.mtp = nn.ModuleList(MTPModule(config, i) for i in range(config.n_future))
        if self.device.type != "meta":
            self.init_weights(generator or torch.Generator().manual_seed(0))

    def tie_weights(self) -> None:
        """Let the output share the embedding's matrix, where the configuration says so."""
        if self.config.tie_embeddings:
            self.unembed.weight = self.embedding.weight

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw all weights: every matrix N(0, 1/n) for its row length n, biases 0, norms 1.

        So every layer starts with outputs as loud as its inputs, at any width; GPT-2's fixed 0.02
        is this rule at a width of 2,500, and drowns the embeddings of a small model. The matrices
        of a block that write into the residual stream are smaller by √(2·n_layers), so that the
        stream does not grow with depth (Radford et al. 2019, §2.3).
        """
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            std = 1 / math.sqrt(weight.shape[-1])
            if name.endswith(WRITERS):
                std /= math.sqrt(2 * self.config.n_layers)
            # Drawn on the CPU, so that a seed means the same model on every device.
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        documents: Tensor | None = None,
        prefix: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Scores of the next token (of the hidden token, in an encoder) at every position.

        Args:
            tokens: int64 (B, T), right-padded where rows differ in length. With a cache these are
                the new tokens only; call ``cache.advance`` afterwards.
            cache: keys and values of earlier tokens.
            documents: int64 (B, T); positions see only those with the same number. An encoder
                needs it to tell padding from text.
            prefix: int64 (B,), with ``mask="prefix"``: so many first tokens are seen by all.
            memory: what an encoder has read, for a decoder with cross-attention.

        Returns:
            logits: (B, T, V).

        Raises:
            ValueError: wrong shape or type, a token outside the vocabulary, or too many tokens.
        """
        return self.logits(self.hidden(tokens, cache, documents, prefix, memory))

    def hidden(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        documents: Tensor | None = None,
        prefix: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """The residual stream after the last norm: (B, T) → (B, T, C)."""
        self._check(tokens, cache, documents)
        T = tokens.shape[1]
        positions = torch.arange(T, device=tokens.device) if cache is None else cache.positions(T)
        x = self.embed(tokens, positions)
        view = self.view(x, positions, cache, documents, prefix, memory)
        for block in self.blocks:
            x = block(x, view, cache)
        return self.norm(x)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What the first block reads: (B, T) ids and (T,) or (B, T) positions → (B, T, C)."""
        return self.place(self.embedding(tokens), positions)

    def place(self, x: Tensor, positions: Tensor) -> Tensor:
        """Vectors (B, T, C), of tokens or learned in their stead, made ready for block 0."""
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        if self.config.position == "learned":
            # Padding behind a nearly full row has no position of its own; nobody reads it.
            x = x + self.position_embedding(positions.clamp(max=self.config.max_length - 1))
        return self.embedding_norm(x) if self.config.embedding_norm else x

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token of the vocabulary: (…, C) → (…, V)."""
        scores = self.unembed(hidden)
        if self.config.logit_scale != 1:
            scores = scores * self.config.logit_scale
        cap = self.config.logit_softcap
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def view(
        self,
        x: Tensor,
        positions: Tensor,
        cache: KVCache | None = None,
        documents: Tensor | None = None,
        prefix: Tensor | None = None,
        memory: Memory | None = None,
    ) -> View:
        """Who sees whom in this pass: masks, biases and rotations, the same for all layers.

        Args:
            x: (B, T, C), for its type and device; positions: (T,) or (B, T).
        """
        c, T = self.config, x.shape[1]
        n_keys = T if cache is None else cache.reach(T)
        causal = c.mask != "bidirectional"
        # Masks count from the first key that is still held, rotations from that of the text.
        places = positions if cache is None or not cache.dropped else positions - cache.dropped
        rules = (places, n_keys, causal, documents, prefix)
        # Two common cases need no mask, the fused kernel knows them: a whole text, one new token.
        plain = documents is None and prefix is None
        plain &= cache is None or (not cache.is_ragged and T in (1, n_keys))
        mask = None if plain else visible(*rules)
        if c.position in ("alibi", "relative"):
            bias = self.position_bias(positions, n_keys).to(x.dtype)
            mask = bias.masked_fill(~visible(*rules), -torch.inf)
        local_mask = mask
        if c.window is not None and n_keys > c.window:
            local_mask = visible(*rules) & window_mask(places, n_keys, c.window)
        rotation = None
        if c.position == "rope":
            cos, sin = rope_angles(positions, c.rope_dim, c.rope)
            rotation = (cos[:, None], sin[:, None]) if positions.dim() == 2 else (cos, sin)
        return View(mask, local_mask, causal, rotation, memory)

    def position_bias(self, positions: Tensor, n_keys: int) -> Tensor:
        """What ALiBi or T5's buckets add to the scores: (1 or B, H, T, S)."""
        rows = positions if positions.dim() == 2 else positions[None]
        if self.config.position == "alibi":
            return self.config.alibi_scale * alibi_bias(rows, n_keys, self.config.n_heads)
        both_sides = self.config.mask == "bidirectional"
        return self.relative_bias(relative_buckets(rows, n_keys, both_sides)).permute(0, 3, 1, 2)

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
        if cache is not None and self.config.mask == "bidirectional":
            raise ValueError("an encoder reads a text whole; it has no use for a cache")
        n_context = tokens.shape[1]
        if cache is not None:
            n_context = max(cache.dropped + cache.reach(0) + 1, n_context)
        if self.config.position == "learned" and n_context > self.config.max_length:
            raise ValueError(
                f"{n_context} tokens, but the model has learned {self.config.max_length} positions;"
                " shorten the text or build the model with a larger max_length"
            )
        if tokens.device.type != "cpu":  # no waiting for a GPU
            return
        least, most = (end.item() for end in tokens.aminmax())
        if least < 0 or most >= self.config.vocab_size:
            raise ValueError(
                f"token ids run from {least} to {most}: expected 0 to "
                f"{self.config.vocab_size - 1}; was the text encoded with this model's tokenizer?"
            )

    def n_parameters(self, embeddings: bool = True, active: bool = False) -> int:
        """Number of weights, tied ones counted once.

        Args:
            embeddings: count the tables of tokens and positions, and the output matrix.
            active: of the experts, count only those that one token meets.
        """
        skip = set()
        if not embeddings:
            tables = (self.embedding, getattr(self, "position_embedding", None), self.unembed)
            skip = {table.weight for table in tables if table is not None}
        total = sum(p.numel() for p in self.parameters() if p not in skip)
        return total - self._idle_weights() if active else total

    def _idle_weights(self) -> int:
        """Expert weights that a token does not meet."""
        layers = [block.mlp for block in self.blocks if isinstance(block.mlp, MoELayer)]
        return sum(sum(p.numel() for p in m.parameters()) - m.active_weights() for m in layers)

    def flops(self, n_tokens: int, context: int = 0) -> int:
        """Multiply-adds times two of one forward pass, matrix products only.

        Args:
            n_tokens: new tokens of one row.
            context: tokens that are already in the cache.
        """
        c = self.config
        used = [p for name, p in self.named_parameters() if p.dim() > 1 and "mtp." not in name]
        matrices = sum(p.numel() for p in used) - self._idle_weights()
        # Looking a row up is not a product; a tied embedding multiplies as the output.
        tables = [] if c.tie_embeddings else [self.embedding]
        for name in ("position_embedding", "relative_bias"):
            tables += [getattr(self, name)] if hasattr(self, name) else []
        matrices -= sum(table.weight.numel() for table in tables)
        # Each new token meets the context and itself and the new tokens before it.
        pairs = n_tokens * context + n_tokens * (n_tokens + 1) // 2
        widths = c.head_dim * 2
        if c.latent:
            widths = c.head_dim + c.latent.rope_dim + (c.latent.value_dim or c.head_dim)
        return 2 * matrices * n_tokens + 2 * c.n_layers * c.n_heads * widths * pairs

    def kv_bytes(self, n_tokens: int, dtype: torch.dtype = torch.float32) -> int:
        """Bytes a cache needs for ``n_tokens`` tokens of one row."""
        n_heads, key_width, value_width = self.config.cache_shape
        numbers = self.config.n_layers * n_heads * (key_width + value_width)
        return numbers * n_tokens * dtype.itemsize

    def save(self, path: str | Path) -> None:
        """Write weights and configuration into one safetensors file, whole or not at all."""
        path = Path(path)
        weights = {k: v.detach().contiguous() for k, v in own_tensors(self).items()}
        config = json.dumps(self.config.to_dict())
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
                config = ModelConfig.from_dict(json.loads((file.metadata() or {})["config"]))
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
        return fill(model, weights)


def fill(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Put the given tensors into a model on the meta device, without copying; shared ones once.

    Raises:
        ValueError: lists every missing, surplus and mis-shaped tensor.
    """
    check_shapes(shapes_of(own_tensors(model)), shapes_of(weights))
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    return model


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name; a tensor with two names appears under the first."""
    first_names = {}
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        first_names.setdefault(id(tensor), name)
    return {name: tensors[name] for name in first_names.values()}


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


class MLMHead(nn.Module):
    """BERT's output: one more layer and norm before the unembedding (Devlin et al. 2019, §3.1)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.activation = activation(config.mlp)
        self.norm = make_norm(config)
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        self.bias = nn.Parameter(torch.empty(config.vocab_size))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(self.activation(self.dense(x))), self.weight, self.bias)


def make_unembedding(config: ModelConfig) -> nn.Module:
    if config.mlm_head:
        return MLMHead(config)
    return nn.Linear(config.d_model, config.vocab_size, bias=False)


def empty_embedding(n: int, width: int) -> nn.Embedding:
    """An embedding for ``init_weights`` or a file to fill.

    PyTorch's own would draw numbers that nobody keeps, and drawing on the meta device makes it
    import its compiler first, which takes longer than loading a model.
    """
    return nn.Embedding.from_pretrained(torch.empty(n, width), freeze=False)


def check_shapes(expected: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]) -> None:
    """Raise one ValueError naming every tensor that is missing, surplus or mis-shaped."""
    problems = [f"missing {name}" for name in sorted(expected.keys() - given.keys())]
    problems += [f"surplus {name}" for name in sorted(given.keys() - expected.keys())]
    problems += [
        f"{name} has shape {given[name]}, expected {expected[name]}"
        for name in sorted(expected.keys() & given.keys())
        if given[name] != expected[name]
    ]
    if problems:
        raise ValueError("the weights do not fit the configuration: " + "; ".join(problems))
