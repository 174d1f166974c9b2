"""The cache in 8 bits: exact bytes, errors of half a step, and the interface of `KVCache`."""

import pytest
import torch
from helpers import randomised

from minillm.adapt.quant import Format, dequantize, quantize
from minillm.adapt.quant_cache import Int8Cache, int8_heads
from minillm.infer.engine import generate
from minillm.infer.sampling import Sampler
from minillm.model.cache import KVCache
from minillm.model.config import Latent, gpt2_config, llama_config
from minillm.model.transformer import Transformer

SIZE = {"d_model": 24, "n_layers": 2, "n_heads": 4, "max_length": 40}
CONFIGS = {
    "gpt2": gpt2_config(19, **SIZE),
    "grouped": llama_config(19, **SIZE, n_kv_heads=2),
    "window": llama_config(19, **SIZE, window=4),
    "latent": llama_config(19, **SIZE, latent=Latent(kv_rank=8, rope_dim=4)),
}
LENGTHS = [5, 9, 7]


@pytest.fixture(params=CONFIGS)
def model(request):
    return randomised(Transformer(CONFIGS[request.param]))


def some_tokens(*shape, seed=0):
    return torch.randint(19, shape, generator=torch.Generator().manual_seed(seed))


def test_codes_are_those_of_absmax_quantisation_row_by_row():
    x = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    x[:, 1] *= 100
    x[1, 0, 2] = 0  # an empty slot: its scale is 0
    codes, scales = int8_heads(x)
    expected = dequantize(quantize(x.reshape(-1, 8), Format("absmax", 8, 0)))
    assert codes.dtype == torch.int8
    torch.testing.assert_close((codes * scales).reshape(-1, 8), expected, rtol=1e-6, atol=0)
    assert ((codes * scales - x).abs() <= scales * 0.5001).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_appended_keys_and_values_come_back_within_half_a_step(dtype):
    generator = torch.Generator().manual_seed(0)
    loudness = torch.tensor([1.0, 30.0])[:, None, None]  # two heads of one layer
    cache = Int8Cache(CONFIGS["grouped"], 3, 6, dtype=dtype)
    given = [torch.randn(2, 2, 3, 2, 2, 6, generator=generator) * loudness for _ in range(2)]
    for k, v in given:
        for layer in range(2):
            keys, values = cache.append(layer, k[layer], v[layer])
            assert keys.dtype == values.dtype == dtype
        cache.advance(2)
    for back, sent in ((keys, [k[1] for k, _ in given]), (values, [v[1] for _, v in given])):
        sent = torch.cat(sent, dim=2)
        half_step = sent.abs().amax(-1, keepdim=True) / 254
        slack = 2e-2 if dtype == torch.bfloat16 else 1e-5
        assert ((back - sent).abs() <= half_step + slack * sent.abs()).all()


def test_bytes_are_the_theory():
    """Per layer, head and token: D codes and one float32 scale, for the key and for the value."""
    config = llama_config(19, d_model=576, n_layers=3, n_heads=9, n_kv_heads=3)
    cache = Int8Cache(config, 2, 10)
    assert cache.nbytes == 3 * 2 * 3 * 10 * 2 * (64 + 4)
    assert cache.nbytes / KVCache(config, 2, 10).nbytes == (64 + 4) / (4 * 64)
    assert KVCache(config, 2, 10).nbytes == 2 * Transformer(config).kv_bytes(10)


@torch.no_grad()
def test_reading_ragged_rows_bit_by_bit_is_close_to_the_plain_cache(model):
    """Prompts of 5, 9 and 7 tokens, single tokens, a chunk, and a row that leaves the batch."""
    tokens, lengths = some_tokens(3, 20), torch.tensor(LENGTHS)
    caches = [make(model.config, 3, 24) for make in (Int8Cache, KVCache)]

    def read(new, advance):
        both = [model(new, cache=cache) for cache in caches]
        for cache in caches:
            cache.advance(advance)
        return both

    ours, exact = read(tokens[:, :9], LENGTHS)
    real = torch.arange(9) < lengths[:, None]
    parts = [(ours[real], exact[real]), read(tokens[:, 9:10], 1), read(tokens[:, 10:14], 4)]
    for cache in caches:
        cache.keep(torch.tensor([False, True, True]))
    parts.append(read(tokens[1:, 14:15], 1))
    for cache in caches:
        cache.keep(torch.tensor([1]))
    parts.append(read(tokens[2:, 15:16], 1))
    for ours, exact in parts:
        error = (ours - exact).norm() / exact.norm()
        assert 0 < error < 0.02


@torch.no_grad()
def test_a_text_read_at_once_or_in_pieces_gives_the_same(model):
    tokens = some_tokens(3, 12)
    at_once, in_pieces = (Int8Cache(model.config, 3, 12) for _ in range(2))
    whole = model(tokens, cache=at_once)
    parts = []
    for part in tokens.split([5, 1, 1, 3, 2], dim=1):
        parts.append(model(part, cache=in_pieces))
        in_pieces.advance(part.shape[1])
    # A code on the border between two levels may fall either way with the order of a sum.
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0.02, atol=0.02)


def test_generate_takes_it_and_writes_what_the_plain_cache_writes(model):
    """Greedy, ragged, with a stop token: rows leave the batch and take their scales along."""
    prompts = [some_tokens(n, seed=n).tolist() for n in LENGTHS]
    settings = {"max_new_tokens": 12, "sampler": Sampler(temperature=0)}
    free = generate(model, prompts, **settings)
    settings["stop_tokens"] = [free[0][3]]
    exact = generate(model, prompts, **settings)
    appended = []

    class Watched(Int8Cache):
        def append(self, layer, k, v):
            appended.append(k)
            return super().append(layer, k, v)

    assert generate(model, prompts, **settings, cache_type=Watched) == exact
    assert appended  # it was really used


def test_it_refuses_what_the_plain_cache_refuses():
    cache = Int8Cache(CONFIGS["grouped"], 2, 4)
    with pytest.raises(ValueError, match="build it with a larger max_length"):
        cache.append(0, *torch.randn(2, 2, 2, 5, 6))
    with pytest.raises(ValueError, match="both must be at least 1"):
        Int8Cache(CONFIGS["grouped"], 0, 4)
