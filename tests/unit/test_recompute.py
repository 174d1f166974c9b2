"""Checkpointed blocks: the same numbers from less memory, whatever is in the blocks."""

import pytest
import torch

from minillm.adapt.lora import LoRA, add_lora
from minillm.adapt.quant import Format
from minillm.adapt.quant_model import quantize_linears
from minillm.adapt.wrap import trainable
from minillm.data.packing import Batch
from minillm.infer.engine import generate
from minillm.infer.sampling import Sampler
from minillm.model.cache import KVCache
from minillm.model.config import MoE, gpt2_config, llama_config
from minillm.model.transformer import Transformer
from minillm.train.loop import accumulate_gradients, token_loss
from minillm.train.memory import TensorMemory
from minillm.train.recompute import checkpoint_blocks, keep_activations

VOCAB = 23
SMALL = {"d_model": 16, "n_layers": 3, "n_heads": 2, "max_length": 32}
CONFIGS = {
    "gpt2": gpt2_config(VOCAB, **SMALL),
    "llama": llama_config(VOCAB, **SMALL, n_kv_heads=1, window=4),
    "relative": llama_config(VOCAB, **SMALL, position="relative"),
    "experts": llama_config(VOCAB, **SMALL, moe=MoE(4, 2, 8)),
    "parallel": llama_config(VOCAB, **SMALL, residual="parallel"),
}


def randomised(config):
    generator = torch.Generator().manual_seed(0)
    model = Transformer(config, generator)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    return model


def ragged_batch():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCAB, (3, 12), generator=generator)
    targets = torch.randint(VOCAB, (3, 12), generator=generator)
    targets[1, 5:] = -100
    return Batch(tokens, targets, torch.arange(12).expand(3, -1) // 5)


def gradients(model):
    loss, _ = accumulate_gradients(model, [ragged_batch()])
    return loss, {name: p.grad for name, p in trainable(model).items()}


@pytest.mark.parametrize("kind", CONFIGS)
def test_loss_and_gradients_are_the_same_bit_for_bit(kind):
    model = randomised(CONFIGS[kind])
    names = list(model.state_dict())
    loss, plain = gradients(model)
    checkpoint_blocks(model)
    checkpoint_blocks(model)
    again, checkpointed = gradients(model)
    assert again == loss
    assert list(model.state_dict()) == names
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(checkpointed[name], grad) for name, grad in plain.items())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # without biases, and with
def test_adapters_on_a_quantised_base_learn_the_same(kind):
    model = randomised(CONFIGS[kind])
    quantize_linears(model, Format("nf4", 4, 8), ("attention.qkv", "attention.out", "mlp.down"))
    generator = torch.Generator().manual_seed(0)
    add_lora(model, LoRA(2, targets=("attention.q", "attention.v", "mlp.up")), generator)
    for weight in trainable(model).values():
        weight.data = torch.randn(weight.shape, generator=generator)
    loss, plain = gradients(model)
    checkpoint_blocks(model)
    again, checkpointed = gradients(model)
    assert again == loss
    assert len(plain) == 18
    assert all(torch.equal(checkpointed[name], grad) for name, grad in plain.items())


def test_each_block_runs_twice_in_training_and_once_otherwise():
    model = randomised(CONFIGS["llama"])
    runs = []
    for block in model.blocks:
        block.mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    checkpoint_blocks(model)
    gradients(model)
    assert len(runs) == 6
    with torch.no_grad():
        model(ragged_batch().tokens)
    assert len(runs) == 9
    keep_activations(model)
    gradients(model)
    assert len(runs) == 12


def test_a_block_more_is_its_weights_and_its_input():
    """After the forward pass, a further block holds one (B, T, C) of float32, and nothing else."""

    def held(n_layers):
        model = randomised(llama_config(VOCAB, **{**SMALL, "n_layers": n_layers}))
        checkpoint_blocks(model)
        with TensorMemory(model) as memory:
            weights = memory.live
            loss, _ = token_loss(model, ragged_batch())
            assert loss.requires_grad
            return memory.live - weights

    assert held(7) - held(3) == 4 * (3 * 12 * 16) * 4


def test_a_cache_is_filled_once():
    model = randomised(CONFIGS["llama"])
    tokens = ragged_batch().tokens
    plain = model(tokens)
    words = generate(model, [[1, 2, 3]], max_new_tokens=5, sampler=Sampler(temperature=0))
    checkpoint_blocks(model)
    cache = KVCache(model.config, 3, 32)
    torch.testing.assert_close(model(tokens, cache=cache), plain, rtol=1e-4, atol=1e-5)
    assert generate(model, [[1, 2, 3]], max_new_tokens=5, sampler=Sampler(temperature=0)) == words


def test_only_what_has_blocks():
    with pytest.raises(ValueError, match="a Linear has no blocks: expected a Transformer"):
        checkpoint_blocks(torch.nn.Linear(2, 2))
