"""LoRA and DoRA against `peft`: the same adapter files, outputs and gradients, both ways."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft_bases import GPT2, LLAMA
from transformers import AutoModelForCausalLM

from minillm.adapt.lora import LoRA, add_lora
from minillm.adapt.lora_files import load_adapters, named_updates, published_parts, save_adapters
from minillm.adapt.wrap import merge, trainable, unmerge
from minillm.model import hf

LLAMA_TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]
CASES = [
    ("llama", LLAMA, {"target_modules": LLAMA_TARGETS}),
    ("llama", LLAMA, {"target_modules": LLAMA_TARGETS, "use_rslora": True}),
    ("llama", LLAMA, {"target_modules": LLAMA_TARGETS, "use_dora": True}),
    ("gpt2", GPT2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    ("gpt2", GPT2, {"target_modules": ["c_fc"], "fan_in_fan_out": True, "use_dora": True}),
]


def randomise(parameters, seed=0):
    """Adapters start at zero, where half of all mistakes do not show."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise.abs() + 0.5 if parameter.dim() == 1 else 0.3 * noise


@pytest.fixture
def tokens():
    return torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(1))


def peft_pair(tmp_path, config, settings):
    """A model of `transformers` with adapters of `peft`, both also on disk."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config)
    randomise(p for p in base.parameters() if p.dim() == 1)
    base.save_pretrained(tmp_path / "model")
    theirs = get_peft_model(base, LoraConfig(r=3, lora_alpha=7, task_type="CAUSAL_LM", **settings))
    randomise(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path / "adapters")
    return theirs


@pytest.mark.parametrize("family, config, settings", CASES)
def test_adapters_of_peft_give_its_logits_and_gradients(tmp_path, tokens, family, config, settings):
    theirs = peft_pair(tmp_path, config, settings)
    ours = hf.from_huggingface(tmp_path / "model")
    load_adapters(ours, tmp_path / "adapters", family)
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)

    weights = torch.randn(3, 9, 50, generator=torch.Generator().manual_seed(2))
    (ours(tokens) * weights).sum().backward()
    (theirs(tokens).logits * weights).sum().backward()
    names = published_parts(ours, family)
    their_gradients = {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    compared = 0
    for part, update in named_updates(ours).items():
        for name, parameter in update.named_parameters():
            kind = {"a": "lora_A", "b": "lora_B", "lengths": "lora_magnitude_vector"}[name]
            (theirs_too,) = [g for n, g in their_gradients.items() if f"{names[part]}.{kind}." in n]
            torch.testing.assert_close(parameter.grad, theirs_too, rtol=1e-4, atol=1e-4)
            compared += 1
    assert compared == len(their_gradients) == len(trainable(ours))


@pytest.mark.parametrize("dora", [False, True])
def test_our_adapters_load_in_peft(tmp_path, tokens, dora):
    peft_pair(tmp_path, LLAMA, {"target_modules": ["q_proj"]})
    ours = hf.from_huggingface(tmp_path / "model")
    lora = LoRA(rank=4, alpha=6, targets=("attention.k", "attention.out", "mlp.gate"), dora=dora)
    randomise(add_lora(ours, lora).values())
    save_adapters(ours, tmp_path / "ours", "llama", lora)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    theirs = PeftModel.from_pretrained(base, tmp_path / "ours")
    torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_merging_changes_nothing_and_unmerging_everything_back(tmp_path, tokens, dora):
    peft_pair(tmp_path, LLAMA, {"target_modules": ["q_proj"]})
    ours = hf.from_huggingface(tmp_path / "model")
    plain = ours(tokens)
    randomise(add_lora(ours, LoRA(targets=("attention.q", "mlp.down"), dora=dora)).values())
    before = ours(tokens)
    assert (before - plain).abs().max() > 0.01
    merge(ours)
    torch.testing.assert_close(ours(tokens), before, rtol=1e-4, atol=1e-5)
    unmerge(ours)
    assert torch.equal(ours(tokens), before)
