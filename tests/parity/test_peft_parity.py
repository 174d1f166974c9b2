"""IA³, prefix tuning, prompt tuning and AdaLoRA against `peft`: outputs and gradients."""

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from peft_bases import GPT2, LLAMA
from transformers import AutoModelForCausalLM

from minillm.adapt.adapters import add_ia3
from minillm.adapt.lora import LoRA, named_updates
from minillm.adapt.lora_files import published_parts
from minillm.adapt.prompts import PrefixTuned, PromptTuned
from minillm.adapt.ranks import Importance, add_adalora, keep_directions, orthogonality
from minillm.adapt.wrap import merge, trainable
from minillm.model import hf

CONFIGS = {"llama": LLAMA, "gpt2": GPT2}
P = 5


@pytest.fixture
def tokens():
    return torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(1))


def pair(tmp_path, family, settings):
    """A random model in `transformers` with `peft` around it, and the same in this package."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(CONFIGS[family])
    randomise(base.parameters())
    base.save_pretrained(tmp_path / "model")
    theirs = get_peft_model(base, settings).eval()
    randomise(p for p in theirs.parameters() if p.requires_grad)
    return hf.from_huggingface(tmp_path / "model"), theirs


def randomise(parameters):
    generator = torch.Generator().manual_seed(0)
    for p in parameters:
        p.data += 0.2 * torch.randn(p.shape, generator=generator)


def compare(ours, theirs, tokens):
    """Logits of the text, and the gradients of a random sum of them in both models."""
    logits = theirs(tokens).logits[:, -tokens.shape[1] :]
    torch.testing.assert_close(ours(tokens), logits, rtol=1e-4, atol=1e-5)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (ours(tokens) * weights).sum().backward()
    (logits * weights).sum().backward()


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_ia3(tmp_path, tokens, family):
    ours, theirs = pair(tmp_path, family, IA3Config(task_type="CAUSAL_LM"))
    factors = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    # peft scales all that GPT-2's fused matrix puts out, queries included.
    add_ia3(ours, outputs=("attention.k", "attention.v") if family == "llama" else ("qkv",))
    matched = {}
    for name, p in trainable(ours).items():
        layer = int(name.split(".")[1])
        theirs_too = {
            "k": "k_proj", "v": "v_proj", "qkv": "c_attn",
            "inputs": "down_proj" if family == "llama" else "mlp.c_proj",
        }[name.rpartition(".")[2]]  # fmt: skip
        (matched[name],) = [n for n in factors if f".{layer}." in n and theirs_too in n]
        p.data = factors[matched[name]].detach().flatten().clone()
    assert sorted(matched.values()) == sorted(factors)
    compare(ours, theirs, tokens)
    for name, p in trainable(ours).items():
        assert_same(p.grad, factors[matched[name]].grad.flatten())
    merge(ours)
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_prefix_tuning(tmp_path, tokens, family):
    settings = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    model, theirs = pair(tmp_path, family, settings)
    ours = PrefixTuned(model, P)
    (table,) = [p for p in theirs.parameters() if p.requires_grad]  # (P, 2·L·K·D)

    def by_layer(numbers):
        """As peft lays them out, → for each layer (1, K, P, D), keys and values in turn."""
        c = model.config
        heads = numbers.view(P, 2 * c.n_layers, c.n_kv_heads, c.head_dim).permute(1, 2, 0, 3)
        return [part[None] for part in heads]

    both = [p for kv in ours.keys_values() for p in kv]
    for p, value in zip(both, by_layer(table.detach()), strict=True):
        p.data = value.clone()
    compare(ours, theirs, tokens)
    assert len(trainable(ours)) == len(both)
    for p, gradient in zip(both, by_layer(table.grad), strict=True):
        assert_same(p.grad, gradient)


@pytest.mark.parametrize("family", CONFIGS)
def test_prompt_tuning(tmp_path, tokens, family):
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    model, theirs = pair(tmp_path, family, settings)
    ours = PromptTuned(model, P)
    (table,) = [p for p in theirs.parameters() if p.requires_grad]  # (P, C)
    ours.prompt.data = table.detach().clone()
    compare(ours, theirs, tokens)
    assert trainable(ours).keys() == {"prompt"}
    assert_same(ours.prompt.grad, table.grad)


def test_adalora(tmp_path, tokens):
    """Outputs, gradients, the regulariser, and which directions are kept after two steps."""
    settings = AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=4, target_r=2, lora_alpha=6, total_step=10, tinit=1,
        tfinal=2, beta1=0.7, beta2=0.8, target_modules=["q_proj", "down_proj"],
    )  # fmt: skip
    ours, theirs = pair(tmp_path, "llama", settings)
    published = published_parts(ours, "llama")
    add_adalora(ours, LoRA(rank=4, alpha=6, targets=("attention.q", "mlp.down")))
    numbers = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    matches = {}
    for part, update in named_updates(ours).items():
        for name, kind in (("p", "lora_B"), ("values", "lora_E"), ("q", "lora_A")):
            (match,) = [n for n in numbers if f"{published[part]}.{kind}." in n]
            parameter = getattr(update, name)
            parameter.data = numbers[match].detach().reshape(parameter.shape).clone()
            matches[parameter] = match
    assert len(matches) == len(numbers)

    loss, allocator = theirs(tokens, labels=tokens).loss, theirs.base_model.rankallocator
    plain = theirs.base_model.model(tokens, labels=tokens).loss
    grams = [p @ p.T if "lora_A" in n else p.T @ p for n, p in numbers.items() if "_E" not in n]
    squared = sum((gram - torch.eye(4)).square().sum() for gram in grams)
    torch.testing.assert_close(orthogonality(ours), squared)
    # peft takes norms where the paper has their squares, and the mean over all matrices.
    norms = sum((gram - torch.eye(4)).norm() for gram in grams) / len(grams)
    torch.testing.assert_close(loss - plain, settings.orth_reg_weight * norms)

    importance = Importance(ours, beta1=0.7, beta2=0.8)
    for seed in range(2):
        texts = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(seed))
        ours.zero_grad()
        theirs.zero_grad()
        compare(ours, theirs, texts)
        for parameter, match in matches.items():
            assert_same(parameter.grad, numbers[match].grad.reshape(parameter.shape))
        importance.observe()
        allocator.update_ipt(theirs)
    for parameter, match in matches.items():
        seen = (allocator.exp_avg_ipt[match], allocator.exp_avg_unc[match])
        for ours_too, mean in zip((importance.means, importance.strays), seen, strict=True):
            mean = mean.reshape(parameter.shape)
            torch.testing.assert_close(ours_too[parameter], mean, rtol=1e-3, atol=1e-4)
    for n in range(15, 0, -1):  # all of the order, from the 16 directions there are
        pattern = allocator.mask_to_budget(theirs, n)
        kept = keep_directions(ours, importance.scores(), n)
        for part, update in named_updates(ours).items():
            match = matches[update.values]
            assert kept[part].tolist() == pattern[match]
            assert_same(update.values, numbers[match].flatten())
