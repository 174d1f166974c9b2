"""An encoder read once, a decoder on a cache: the full forward, and the greedy text of T5."""

import pytest
import torch
from cases_classic import ENCODER_DECODERS
from pairs import LENGTHS, load, ragged, random_tokens, randomised

from minillm.model.cache import KVCache
from minillm.model.config import ModelConfig
from minillm.model.encoder_decoder import EncoderDecoder


@pytest.fixture(params=ENCODER_DECODERS)
def pair(request, tmp_path):
    theirs = randomised(ENCODER_DECODERS[request.param]())
    return load(theirs, tmp_path), theirs


@torch.no_grad()
def test_reading_once_and_decoding_on_a_cache_is_the_full_forward(pair):
    ours, _ = pair
    source, real = ragged()
    target, _ = ragged((19, 19, 19), seed=2)
    full = ours(source, target, real.long())
    memory = ours.encode(source, real.long())
    cache = KVCache(ours.config, batch_size=3, max_length=19)
    prefill = ours.decoder(target[:, :7], cache=cache, memory=memory)
    at = [7, 3, 5]
    for row, n in enumerate(at):
        torch.testing.assert_close(prefill[row, :n], full[row, :n], rtol=1e-4, atol=2e-5)
    cache.advance(at)
    for n_new in (1, 1, 4, 1):
        new = torch.stack([target[row, n : n + n_new] for row, n in enumerate(at)])
        logits = ours.decoder(new, cache=cache, memory=memory)
        cache.advance(n_new)
        for row, n in enumerate(at):
            expected = full[row, n : n + n_new]
            torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=2e-5)
        at = [n + n_new for n in at]


@torch.no_grad()
def test_long_texts_reach_the_wide_buckets_of_distance(pair):
    """Distances from 8 (encoder) or 16 on share buckets, and all from 128 on share the last."""
    ours, theirs = pair
    source, target = random_tokens(1, 200), random_tokens(1, 170, seed=2)
    expected = theirs(source, decoder_input_ids=target).logits
    torch.testing.assert_close(ours(source, target), expected, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_padding_of_the_source_changes_nothing(pair):
    ours, _ = pair
    source, real = ragged()
    target, _ = ragged((6, 6, 6), seed=2)
    together = ours(source, target, real.long())
    for row, length in enumerate(LENGTHS):
        alone = ours(source[row : row + 1, :length], target[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_greedy_text_is_that_of_transformers(pair):
    ours, theirs = pair
    source, real = ragged()
    options = {"attention_mask": real.long(), "do_sample": False, "max_new_tokens": 24}
    free = theirs.generate(source, eos_token_id=None, pad_token_id=0, **options)[:, 1:].tolist()
    written = {"start_token": 0, "max_new_tokens": 24, "documents": real.long()}
    assert ours.generate(source, **written) == free
    # A token that one row writes in the middle makes that row stop early.
    stop = free[0][9]
    stopped = ours.generate(source, stop_token=stop, **written)
    assert stopped == [row[: row.index(stop)] if stop in row else row for row in free]
    assert len(stopped[0]) < 24
    padded = theirs.generate(source, eos_token_id=stop, pad_token_id=0, **options)[:, 1:]
    for mine, row in zip(stopped, padded.tolist(), strict=True):
        assert row[: len(mine)] == mine


def test_parts_that_do_not_fit_together_are_refused():
    size = {"vocab_size": 11, "d_model": 8, "n_layers": 1, "n_heads": 2, "position": "relative"}
    encoder = ModelConfig(**size, mask="bidirectional")
    decoder = ModelConfig(**size, cross_attention=True)
    EncoderDecoder(encoder, decoder)
    with pytest.raises(ValueError, match="encoder needs mask='bidirectional'"):
        EncoderDecoder(ModelConfig(**size), decoder)
    with pytest.raises(ValueError, match="decoder needs cross_attention=True"):
        EncoderDecoder(encoder, encoder)
    with pytest.raises(ValueError, match="same vocab_size and d_model"):
        EncoderDecoder(encoder, ModelConfig(**size | {"vocab_size": 12}, cross_attention=True))
    model = EncoderDecoder(encoder, decoder)
    tokens = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="token ids run from"):
        model(tokens, tokens * 11)
    with pytest.raises(ValueError, match="documents need the shape of tokens"):
        model(tokens, tokens, tokens[:, :2])
