"""Two Transformers, one reading and one writing: the architecture of the first paper and of T5.

Shapes: B batch, S source time, T target time, C channels, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minillm.model.cache import KVCache
from minillm.model.config import ModelConfig
from minillm.model.masks import Memory
from minillm.model.transformer import Transformer, fill


class EncoderDecoder(nn.Module):
    """An encoder that sees the whole source and a decoder that looks at what it made of it.

    (Vaswani et al. 2017, §3.1; Raffel et al. 2020.) Both are ordinary Transformers and share one
    embedding.

    Args:
        encoder: a configuration with ``mask="bidirectional"`` and tied embeddings (it has no
            output of its own).
        decoder: one with ``cross_attention=True`` and the same vocabulary and width.
        generator: source of the initial weights; None starts one at seed 0.

    Raises:
        ValueError: the two do not fit together.
    """

    def __init__(
        self,
        encoder: ModelConfig,
        decoder: ModelConfig,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if encoder.mask != "bidirectional" or not encoder.tie_embeddings:
            raise ValueError("the encoder needs mask='bidirectional' and tie_embeddings=True")
        if not decoder.cross_attention or decoder.mask != "causal":
            raise ValueError("the decoder needs cross_attention=True and mask='causal'")
        if (encoder.vocab_size, encoder.d_model) != (decoder.vocab_size, decoder.d_model):
            raise ValueError("encoder and decoder need the same vocab_size and d_model")
        self.encoder = Transformer(encoder, generator)
        self.decoder = Transformer(decoder, generator)
        self.tie_weights()

    def tie_weights(self) -> None:
        self.decoder.embedding = self.encoder.embedding
        self.encoder.tie_weights()
        self.decoder.tie_weights()

    @property
    def config(self) -> ModelConfig:
        """The decoder's configuration: what a cache and a sampler need to know."""
        return self.decoder.config

    def forward(self, source: Tensor, target: Tensor, documents: Tensor | None = None) -> Tensor:
        """Scores of the next target token at every position.

        Args:
            source: int64 (B, S), right-padded.
            target: int64 (B, T), shifted right: starts with a start token.
            documents: int64 (B, S), 1 for text and 0 for padding; None: no padding.

        Returns:
            logits: (B, T, V).
        """
        return self.decoder(target, memory=self.encode(source, documents))

    def encode(self, source: Tensor, documents: Tensor | None = None) -> Memory:
        """Read the source once, for any number of decoding steps; arguments as `forward`."""
        encoded = self.encoder.hidden(source, documents=documents)
        mask = None if documents is None else (documents > 0)[:, None, None]
        return Memory([b.cross_attention.remember(encoded) for b in self.decoder.blocks], mask)

    @torch.inference_mode()
    def generate(
        self,
        source: Tensor,
        *,
        start_token: int,
        max_new_tokens: int,
        stop_token: int | None = None,
        documents: Tensor | None = None,
    ) -> list[list[int]]:
        """The most likely next token, again and again, on a cache; without the stop token."""
        memory = self.encode(source, documents)
        cache = KVCache(self.config, len(source), max_new_tokens, source.device)
        token = torch.full((len(source), 1), start_token, device=source.device)
        written = []
        for _ in range(max_new_tokens):
            token = self.decoder(token, cache=cache, memory=memory).argmax(dim=-1)
            cache.advance(1)
            written.append(token[:, 0])
            if stop_token is not None and (torch.stack(written) == stop_token).any(0).all():
                break
        rows = torch.stack(written, dim=1).tolist()
        return [row[: row.index(stop_token)] if stop_token in row else row for row in rows]

    def n_parameters(self) -> int:
        """Number of weights, shared ones counted once."""
        return sum(p.numel() for p in self.parameters())

    @classmethod
    def from_weights(
        cls, configs: tuple[ModelConfig, ModelConfig], weights: dict[str, Tensor]
    ) -> EncoderDecoder:
        """Build a model around the given tensors; see `Transformer.from_weights`."""
        with torch.device("meta"):
            model = cls(*configs)
        return fill(model, weights)
