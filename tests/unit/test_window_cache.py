"""The cache of a sliding window: the same numbers as a cache that keeps everything, fewer bytes."""

import dataclasses

import pytest
import torch

from minillm.data.tokenizer import Tokenizer
from minillm.infer.chat import Chat
from minillm.infer.engine import generate
from minillm.infer.sampling import Sampler
from minillm.model.cache import KVCache
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer
from minillm.model.window_cache import WindowCache

WINDOW = 5
CONFIG = llama_config(
    30, d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, max_length=80, window=WINDOW
)


@pytest.fixture(scope="module")
def model():
    return Transformer(CONFIG, torch.Generator().manual_seed(0))


def tokens_of(*shape):
    return torch.randint(30, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("chunks", [(1,) * 40, (4, 1, 7, 3, 12, 1, 1, 11), (23, 1, 1, 15), (40,)])
@torch.no_grad()
def test_logits_are_those_of_the_whole_text_and_the_bytes_stop_growing(model, chunks):
    tokens = tokens_of(3, 40)
    whole, cache, start = model(tokens), WindowCache(CONFIG, 3, 40), 0
    for n in chunks:
        logits = model(tokens[:, start : start + n], cache=cache)
        cache.advance(n)
        torch.testing.assert_close(logits, whole[:, start : start + n], rtol=1e-4, atol=1e-5)
        start += n
    assert cache.dropped + cache.lengths[0] == 40
    assert cache.keys.shape[3] <= 2 * WINDOW
    assert cache.nbytes <= KVCache(CONFIG, 3, 40).nbytes / 4


@torch.no_grad()
def test_ragged_rows_and_rows_that_leave(model):
    tokens, lengths = tokens_of(3, 50), torch.tensor([21, 9, 16])
    cache = WindowCache(CONFIG, 3, 60)
    model(tokens[:, :21], cache=cache)
    cache.advance(lengths)
    rows = torch.arange(3)
    for step in range(25):
        if step == 8:
            rows = torch.tensor([0, 2])
            cache.keep(rows)
        at = lengths[rows] + step
        logits = model(tokens[rows, at][:, None], cache=cache)
        cache.advance(1)
        for i, (row, n) in enumerate(zip(rows.tolist(), at.tolist(), strict=True)):
            alone = model(tokens[row : row + 1, : n + 1])[0, -1]
            torch.testing.assert_close(logits[i, 0], alone, rtol=1e-4, atol=1e-5)
    assert cache.dropped > 16


def test_generate_writes_the_same_text(model):
    prompts = [tokens_of(1, n)[0].tolist() for n in (30, 2, 11)]
    greedy = {"max_new_tokens": 30, "sampler": Sampler(temperature=0)}
    written = generate(model, prompts, cache_type=WindowCache, **greedy)
    assert written == generate(model, prompts, **greedy)


def test_refusals(model):
    for changes in ({"window": None}, {"global_layers": (1,)}, {"mask": "prefix"}):
        with pytest.raises(ValueError, match="window in every layer; use KVCache"):
            WindowCache(dataclasses.replace(CONFIG, **changes), 1, 20)
    cache = WindowCache(CONFIG, 1, 20)
    with torch.no_grad():
        model(tokens_of(1, 20), cache=cache)
        cache.advance(20)
        with pytest.raises(ValueError, match="built for 20 tokens a row and 21 are needed"):
            model(tokens_of(1, 1), cache=cache)
    with pytest.raises(ValueError, match="older tokens are dropped"):
        cache.rewind(1)


def test_a_chat_can_use_it():
    tokenizer = Tokenizer.train(["who are you and who am I"], 280, ("<|endoftext|>",))
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size, max_length=200)
    model = Transformer(config, torch.Generator().manual_seed(0)).double()
    said = []
    for cache_type in (KVCache, WindowCache):
        options = {"sampler": Sampler(temperature=0), "max_new_tokens": 12}
        chat = Chat(model, tokenizer, cache_type=cache_type, **options)
        said.append(
            ["".join(chat.say(question)) for question in ("who are you", "and", "who am I")]
        )
    assert said[0] == said[1] and all(said[0])
    assert chat._cache.dropped > 20
