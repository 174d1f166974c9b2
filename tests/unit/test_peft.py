"""The parameter-efficient family beside LoRA: what is learned, where it starts, what it refuses."""

from dataclasses import replace

import pytest
import torch

from minillm.adapt.adapters import PFEIFFER, add_bottlenecks, add_ia3, train_only
from minillm.adapt.prompts import PrefixTuned, PromptTuned
from minillm.adapt.quant import Format
from minillm.adapt.quant_model import quantize_linears
from minillm.adapt.wrap import merge, remove_adapters, trainable, unmerge
from minillm.infer.engine import generate
from minillm.infer.sampling import Sampler
from minillm.model.config import gpt2_config, llama_config
from minillm.model.transformer import Transformer

LLAMA = llama_config(31, d_model=12, n_layers=2, n_heads=3, n_kv_heads=1, d_ff=20, max_length=16)
GPT2 = gpt2_config(31, d_model=12, n_layers=2, n_heads=3, d_ff=20, max_length=16)
TOKENS = torch.randint(0, 31, (3, 7), generator=torch.Generator().manual_seed(0))
FREEZE = {
    "bottleneck": lambda m: add_bottlenecks(m, width=5),
    "pfeiffer": lambda m: add_bottlenecks(m, width=5, targets=PFEIFFER),
    "ia3": add_ia3,
    "bitfit": train_only,
}


def randomised(model, seed=1):
    """Biases start at 0 and factors at 1, where half of all mistakes do not show."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator)
    return model


def move(learning):
    """One big step of each learning parameter, as an optimizer might take."""
    generator = torch.Generator().manual_seed(2)
    for p in learning.values():
        p.data += 0.5 * torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("method", FREEZE)
def test_it_starts_as_the_model_and_only_its_parameters_learn(method):
    model = randomised(Transformer(GPT2))
    before, logits = {n: p.clone() for n, p in model.named_parameters()}, model(TOKENS)
    learning = FREEZE[method](model)
    torch.testing.assert_close(model(TOKENS), logits)
    assert learning.keys() == trainable(model).keys()

    model(TOKENS).square().mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() == learning.keys()
    move(learning)
    assert not torch.allclose(model(TOKENS), logits, atol=1e-3)
    remove_adapters(model)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != (name in learning), name


def test_how_many_parameters_each_method_trains():
    """By hand, for width 12, two layers, 20 hidden units: 2·r·D + r + D a bottleneck, and so on."""
    count = {}
    for method, freeze in FREEZE.items():
        count[method] = sum(p.numel() for p in freeze(Transformer(GPT2)).values())
    bottleneck = 2 * 5 * 12 + 5 + 12
    assert count["bottleneck"] == 2 * 2 * bottleneck
    assert count["pfeiffer"] == 2 * bottleneck
    assert count["ia3"] == 2 * (12 + 12 + 20)
    # A layer: two norms, q, k, v, out, up, down; and the norm behind the last one.
    assert count["bitfit"] == 2 * (2 * 12 + 3 * 12 + 12 + 20 + 12) + 12
    grouped = add_ia3(Transformer(LLAMA))  # one head of size 4 for keys, one for values
    assert sum(p.numel() for p in grouped.values()) == 2 * (4 + 4 + 20)


def test_a_bottleneck_reads_and_adds_to_the_output_of_its_layer():
    """y = h + up(gelu(down(h))) with numbers one can follow: h = 1, down = 2, up = 3."""
    model = Transformer(GPT2)
    add_bottlenecks(model, width=1, targets=("mlp.down",))
    layer = model.blocks[0].mlp.down
    with torch.no_grad():
        layer.base.weight.zero_()
        layer.base.bias.fill_(1.0)
        layer.down.weight.fill_(2 / 12)
        layer.up.weight.fill_(3.0)
    gelu_of_2 = 2 * 0.9772498680518208  # 2 · Φ(2)
    expected = torch.full((1, 12), 1 + 3 * gelu_of_2)
    torch.testing.assert_close(layer(torch.randn(1, 20)), expected)


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_merged_factors_compute_the_same_and_come_out_exactly(config):
    model = randomised(Transformer(config))
    move(add_ia3(model, outputs=("attention.q", "attention.v", "mlp.down")))
    scaled = model(TOKENS)
    merge(model)
    torch.testing.assert_close(model(TOKENS), scaled, rtol=1e-4, atol=1e-4)
    unmerge(model)
    assert torch.equal(model(TOKENS), scaled)
    merge(model)
    remove_adapters(model)
    torch.testing.assert_close(model(TOKENS), scaled, rtol=1e-4, atol=1e-4)


def test_a_bottleneck_cannot_be_merged():
    model = Transformer(GPT2)
    add_bottlenecks(model)
    with pytest.raises(ValueError, match="a BottleneckLinear is not linear and cannot be merged"):
        merge(model)


def test_wrong_names_list_what_there_is_and_change_nothing():
    model = Transformer(LLAMA)
    for call, words in (
        (lambda: add_bottlenecks(model, targets="mlp.down"), r"one text: .* \('mlp.down',\)"),
        (lambda: add_bottlenecks(model, targets=("mlp.out",)), "no layer is called 'mlp.out'; th"),
        (lambda: add_bottlenecks(model, targets=("attention.q",)), "q is a part of blocks.0.atten"),
        (lambda: add_bottlenecks(model, width=0), "width=0: expected at least 1"),
        (lambda: add_ia3(model, outputs=("k",), inputs=("mlp.dwn",)), "no layer is called 'mlp.d"),
        (lambda: add_ia3(model, outputs=(), inputs=()), "no targets"),
        (
            lambda: train_only(model),
            "no parameter ends in 'bias'; there are attention_norm.weight, ",
        ),
        (lambda: train_only(model, ("rm.weight",)), "no parameter ends in 'rm.weight'"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert all(p.requires_grad for p in model.parameters())
    add_ia3(model)
    with pytest.raises(ValueError, match="already has adapters"):
        add_bottlenecks(model)


@pytest.mark.parametrize("config", [GPT2, LLAMA])
@pytest.mark.parametrize("kind", [PrefixTuned, PromptTuned])
def test_a_prefix_that_starts_as_tokens_is_those_tokens(config, kind):
    """What the text sees of "3 1 4" is the same, whether it was read or is about to be learned."""
    model, first = randomised(Transformer(config)), torch.tensor([3, 1, 4])
    tuned = kind(model, 3, first)
    whole = model(torch.cat((first.expand(3, -1), TOKENS), dim=1))
    torch.testing.assert_close(tuned(TOKENS), whole[:, 3:], rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in trainable(tuned).values()) == (
        3 * 12 if kind is PromptTuned else 2 * 2 * 3 * config.n_kv_heads * config.head_dim
    )
    tuned(TOKENS).square().sum().backward()
    assert all(p.grad is not None for p in trainable(tuned).values())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_generation_behind_a_prefix_uses_the_cache_and_ragged_rows(config):
    tuned = PrefixTuned(randomised(Transformer(config)), 3)
    move(trainable(tuned))
    prompts, greedy = [[5, 6, 7, 8], [9], [2, 2]], Sampler(temperature=0)
    made = generate(tuned, prompts, max_new_tokens=5, sampler=greedy)
    for prompt, new in zip(prompts, made, strict=True):
        text = torch.tensor([prompt + new])
        assert tuned(text)[0, len(prompt) - 1 : -1].argmax(-1).tolist() == new


def test_learned_positions_before_the_text_are_checked():
    model = Transformer(GPT2)
    for call, words in (
        (lambda: PrefixTuned(model, 0), "n=0: expected at least one learned position"),
        (lambda: PromptTuned(model, 2, torch.tensor([1])), r"shape \(1,\): expected \(2,\)"),
        (lambda: PromptTuned(model, 10)(TOKENS), "10 learned positions and 7 tokens, but the mod"),
        (
            lambda: PrefixTuned(Transformer(replace(GPT2, mask="bidirectional")), 2),
            "an encoder has no cache",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_factors_belong_to_the_rows_of_their_part():
    """Keys times 2, values times 3 and hidden units times 5 are other weights of the same model."""
    model, scaled = (randomised(Transformer(GPT2)) for _ in range(2))
    add_ia3(scaled)
    for tuned, plain in zip(scaled.blocks, model.blocks, strict=True):
        tuned.attention.qkv.outputs["k"].data.fill_(2)
        tuned.attention.qkv.outputs["v"].data.fill_(3)
        tuned.mlp.down.inputs.data.fill_(5)
        for numbers in (plain.attention.qkv.weight.data, plain.attention.qkv.bias.data):
            numbers[12:24] *= 2
            numbers[24:36] *= 3
        plain.mlp.down.weight.data *= 5
    torch.testing.assert_close(scaled(TOKENS), model(TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("add", [add_ia3, add_bottlenecks])
def test_quantised_layers_can_have_them_too(add):
    model = Transformer(replace(LLAMA, d_model=16, head_dim=4))
    quantize_linears(model, Format("absmax", 8), ("attention.qkv", "attention.out", "mlp.down"))
    logits = model(TOKENS)
    learning = add(model)
    torch.testing.assert_close(model(TOKENS), logits)
    model(TOKENS).square().sum().backward()
    assert all(p.grad is not None for p in learning.values())
