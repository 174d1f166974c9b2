"""Early exit: nobody leaves, everybody leaves, and what the skipped layers remember."""

import pytest
import torch
from helpers import rng

from minillm.adapt.prune import drop_layers
from minillm.infer.early_exit import (
    ExitHead,
    confidence,
    early_step,
    generate_early,
    states_after,
)
from minillm.infer.engine import generate, prefill
from minillm.infer.sampling import Sampler
from minillm.model.config import Latent, gpt2_config, llama_config
from minillm.model.transformer import Transformer

GREEDY = Sampler(temperature=0)
PROMPT = [3, 1, 4, 1, 5]
SIZE = {"d_model": 24, "n_layers": 4, "n_heads": 4, "max_length": 40}


def shake(module, seed, scale=0.4):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=rng(seed)))
            seed += 1


@pytest.fixture(params=["gpt2", "llama", "parallel", "sandwich"])
def model(request):
    config = {
        "gpt2": lambda: gpt2_config(19, **SIZE, tie_embeddings=False),
        "llama": lambda: llama_config(19, **SIZE, n_kv_heads=2, window=6),
        "parallel": lambda: llama_config(19, **SIZE, residual="parallel"),
        "sandwich": lambda: llama_config(19, **SIZE, norm_place="sandwich"),
    }[request.param]()
    model = Transformer(config)
    shake(model, 1)
    return model


def shaken_exits(model, *layers):
    exits = {n: ExitHead(model) for n in layers}
    for n, head in exits.items():
        shake(head, 100 * n)
    return exits


def test_if_nobody_leaves_the_text_is_the_models_own(model):
    for sampler in (GREEDY, Sampler(temperature=0.8)):
        [expected] = generate(model, [PROMPT], max_new_tokens=20, sampler=sampler, generator=rng(3))
        uniforms = torch.Generator().manual_seed(
            torch.randint(2**62, (1,), generator=rng(3)).item()
        )
        told = generate_early(
            model, PROMPT, shaken_exits(model, 1, 3), 1.1, max_new_tokens=20, sampler=sampler,
            generator=uniforms,
        )  # fmt: skip
        assert told.tokens == expected and told.layers == [4] * 20


def test_a_fresh_head_after_k_layers_is_the_model_of_k_layers(model):
    """Everybody leaves at once, so the skipped layers are never asked for anything."""
    for k in (1, 2):
        short = drop_layers(model, range(k))
        [first] = generate(model, [PROMPT], max_new_tokens=1, sampler=GREEDY)
        [rest] = generate(short, [[*PROMPT, *first]], max_new_tokens=19, sampler=GREEDY)
        told = generate_early(model, PROMPT, {k: ExitHead(model)}, 0.0, max_new_tokens=20)
        assert told.tokens == first + rest
        assert told.layers == [4] + [k] * 19


def test_who_left_looks_to_the_later_layers_as_it_was_then(model):
    """One pass without a cache over the whole text, in which a state freezes at its exit."""
    exits, new = shaken_exits(model, 1, 2), torch.randint(19, (30,), generator=rng(9)).tolist()
    text = torch.tensor([PROMPT + new])
    sure = confidence(exits[1](states_after(model, text, [1])[1]))
    _, cache = prefill(model, [PROMPT], len_new=len(new))
    with torch.inference_mode():  # about half leave at the first exit
        steps = [early_step(model, t, cache, exits, sure.median().item()) for t in new]
    layers = torch.tensor([4] * len(PROMPT) + [n for _, n in steps])  # of each position
    assert 5 < (layers == 1).sum() < 25
    positions = torch.arange(text.shape[1])
    with torch.no_grad():
        x = model.embed(text, positions)
        view = model.view(x, positions)
        for n, block in enumerate(model.blocks, start=1):
            x = torch.where((n <= layers)[:, None], block(x, view), x)
        heads = {**exits, 4: lambda x: model.logits(model.norm(x))}
        for i, (logits, n) in enumerate(steps, start=len(PROMPT)):
            assert torch.allclose(logits[0], heads[n](x[0, i]), atol=1e-4)


def test_the_first_exit_that_is_sure_is_taken(model):
    exits = shaken_exits(model, 1, 2, 3)
    text = torch.tensor([PROMPT])
    states = states_after(model, text, [1, 2, 3])
    sure = {n: confidence(exits[n](states[n][:, -1])).item() for n in exits}
    for threshold in (*sure.values(), 1.1):
        expected = min((n for n, c in sure.items() if c >= threshold - 1e-4), default=4)
        _, cache = prefill(model, [PROMPT[:-1]], len_new=1)
        with torch.inference_mode():
            _, n = early_step(model, PROMPT[-1], cache, exits, threshold - 1e-4)
        assert n == expected
        assert cache.lengths.tolist() == [len(PROMPT)]


def test_states_after_the_last_layer_give_the_models_logits(model):
    text = torch.randint(19, (3, 9), generator=rng())
    states = states_after(model, text, [2, 4])
    assert list(states) == [2, 4]
    assert torch.allclose(model.logits(model.norm(states[4])), model(text), atol=1e-5)
    short = drop_layers(model, [0, 1])
    assert torch.allclose(ExitHead(model)(states[2]), short(text), atol=1e-5)


def test_a_head_learns_and_leaves_the_model_alone(model):
    head = ExitHead(model)
    names = {name for name, _ in head.named_parameters()}
    assert "correct.weight" in names and not any("unembed" in name for name in names)


def test_confidence_is_the_lead_of_the_best():
    logits = torch.tensor([[0.7, 0.1, 0.2], [1 / 3, 1 / 3, 1 / 3]]).log()
    assert confidence(logits).tolist() == pytest.approx([0.5, 0.0], abs=1e-6)


def test_a_stop_token_ends_the_text(model):
    exits = shaken_exits(model, 2)
    free = generate_early(model, PROMPT, exits, 0.3, max_new_tokens=20).tokens
    stop = free[7]
    told = generate_early(model, PROMPT, exits, 0.3, max_new_tokens=20, stop_tokens=[stop])
    assert told.tokens == free[: free.index(stop)]
    assert len(told.layers) == len(told.tokens) + 1


def test_what_is_refused(model):
    for n in (0, 4):
        with pytest.raises(ValueError, match="expected 1 to 3"):
            generate_early(model, PROMPT, {n: None}, 0.5, max_new_tokens=2)
    with pytest.raises(ValueError, match="empty"):
        generate_early(model, [], {}, 0.5, max_new_tokens=2)
    latent = Latent(kv_rank=8, rope_dim=4)
    for changes in ({"norm_place": "post"}, {"norm_place": "output"}, {"latent": latent}):
        other = Transformer(llama_config(19, **SIZE, **changes))
        with pytest.raises(ValueError, match="early exit needs"):
            generate_early(other, PROMPT, {}, 0.5, max_new_tokens=2)
