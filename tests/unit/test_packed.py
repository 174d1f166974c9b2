"""The packed copy of a model computes what the model computes, for one row and for several."""

import pytest
import torch
from helpers import randomised
from torch import nn

from minillm.infer.engine import generate
from minillm.infer.packed import FewStepsNorm, PackedLinear, packed
from minillm.infer.sampling import Sampler
from minillm.model.cache import KVCache
from minillm.model.config import Latent, Rope, gpt2_config, llama_config
from minillm.model.transformer import Transformer

SIZE = {"d_model": 24, "n_layers": 2, "n_heads": 3, "max_length": 40}
CONFIGS = {
    "gpt2": gpt2_config(19, **SIZE),
    "llama": llama_config(19, **SIZE),
    "partial": llama_config(19, **SIZE, rope=Rope(fraction=0.5)),
    "interleaved": llama_config(19, **SIZE, rope=Rope(pairs="interleaved")),
    "latent": llama_config(19, **SIZE, latent=Latent(kv_rank=8, rope_dim=4)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 30), (30, 7), (16, 16)])
@pytest.mark.parametrize("rows", [(1,), (8,), (1, 1), (3, 5)])
def test_a_packed_layer_equals_its_layer(bias, shape, rows):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(*shape, bias=bias)
    x = torch.randn(*rows, shape[0], generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(PackedLinear(layer)(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.fixture(params=CONFIGS)
def model(request):
    return randomised(Transformer(CONFIGS[request.param]))


def test_a_packed_model_generates_the_same_and_leaves_the_model_alone(model):
    fast = packed(model)
    assert isinstance(fast.blocks[0].attention.out, PackedLinear)
    assert isinstance(model.blocks[0].attention.out, nn.Linear)
    assert fast.n_parameters() == model.n_parameters()
    assert fast.embedding.weight is model.embedding.weight
    for prompts in ([[1, 2]], [[1, 2], [3], [4, 5, 6]]):
        settings = {"max_new_tokens": 12, "sampler": Sampler(temperature=0)}
        assert generate(fast, prompts, **settings) == generate(model, prompts, **settings)


@torch.no_grad()
@pytest.mark.parametrize("n_rows", [1, 3])
def test_logits_stay_the_same_from_position_to_position(model, n_rows):
    """Ragged prompts, then two single tokens: every pass turns by other angles."""
    tokens = torch.randint(19, (n_rows, 9), generator=torch.Generator().manual_seed(0))
    pair = (
        (packed(model), KVCache(model.config, n_rows, 9)),
        (model, KVCache(model.config, n_rows, 9)),
    )
    for part, counts in (
        (tokens[:, :7], [7, 5, 6][:n_rows]),
        (tokens[:, 7:8], 1),
        (tokens[:, 8:], 1),
    ):
        ours, exact = (m(part, cache=cache) for m, cache in pair)
        torch.testing.assert_close(ours, exact, atol=1e-4, rtol=1e-4)
        for _, cache in pair:
            cache.advance(counts)


@pytest.mark.parametrize("shape", [(7,), (1, 1, 8), (3, 5, 576)])
@pytest.mark.parametrize("eps", [0.1, 1e-6])
def test_the_norm_in_few_steps_is_the_norm(shape, eps):
    generator = torch.Generator().manual_seed(2)
    norm, x = nn.RMSNorm(shape[-1], eps=eps), torch.randn(*shape, generator=generator)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        exact = nn.functional.rms_norm(x.double(), shape[-1:], norm.weight.double(), eps)
        torch.testing.assert_close(FewStepsNorm(norm)(x), exact.float())


def test_without_onednn_or_cpu_the_model_itself_comes_back(monkeypatch):
    with torch.device("meta"):
        elsewhere = Transformer(gpt2_config(19, **SIZE))
    assert packed(elsewhere) is elsewhere
    model = Transformer(gpt2_config(19, **SIZE))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert packed(model) is model
