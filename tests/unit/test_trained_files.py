"""Every method's parameters come back from a file, and only they are in it."""

import pytest
import torch
from safetensors.torch import load_file

from minillm.adapt.adapters import add_bottlenecks, add_ia3, train_only
from minillm.adapt.lora import LoRA, add_lora
from minillm.adapt.prompts import PrefixTuned, PromptTuned
from minillm.adapt.ranks import add_adalora, add_dylora
from minillm.adapt.selection import add_sparse
from minillm.adapt.trained_files import load_trained, save_trained
from minillm.adapt.wrap import trainable
from minillm.model.config import gpt2_config
from minillm.model.transformer import Transformer

CONFIG = gpt2_config(31, d_model=12, n_layers=2, n_heads=3, d_ff=20, max_length=16)
TOKENS = torch.randint(0, 31, (3, 7), generator=torch.Generator().manual_seed(0))


def sparse(model, seed):
    """Other places every time, as if chosen by another run."""
    mask = torch.rand(12, 20, generator=torch.Generator().manual_seed(seed)).argsort(1) < 2
    return add_sparse(model, {f"blocks.{i}.mlp.down": mask for i in range(2)})


PREPARE = {
    "lora": lambda m, _: add_lora(m, LoRA(dora=True)),
    "bottleneck": lambda m, _: add_bottlenecks(m, width=5),
    "ia3": lambda m, _: add_ia3(m),
    "bitfit": lambda m, _: train_only(m),
    "prefix": lambda m, _: PrefixTuned(m, 3),
    "prompt": lambda m, _: PromptTuned(m, 3),
    "adalora": lambda m, _: add_adalora(m, LoRA()),
    "dylora": lambda m, _: add_dylora(m, LoRA()),
    "sparse": sparse,
}


def prepared(method, seed):
    model = Transformer(CONFIG)
    made = PREPARE[method](model, seed)
    return made if isinstance(made, torch.nn.Module) else model


@pytest.mark.parametrize("method", PREPARE)
def test_saved_and_loaded(method, tmp_path):
    trained, fresh = prepared(method, 1), prepared(method, 2)
    generator = torch.Generator().manual_seed(3)
    for p in trainable(trained).values():
        p.data += torch.randn(p.shape, generator=generator)
    save_trained(trained, tmp_path / "learned.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["learned.safetensors"]
    stored = load_file(tmp_path / "learned.safetensors")
    assert {n for n in stored if not n.endswith(".places")} == trainable(trained).keys()

    assert not torch.allclose(fresh(TOKENS), trained(TOKENS), atol=1e-3)
    load_trained(fresh, tmp_path / "learned.safetensors")
    assert torch.equal(fresh(TOKENS), trained(TOKENS))


def test_what_does_not_fit_is_listed_and_changes_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    save_trained(prepared("ia3", 0), path)
    model = prepared("bottleneck", 0)
    before = [p.clone() for p in model.parameters()]
    words = "missing blocks.0.attention.out.down.bias.*surplus blocks.0.attention.qkv.outputs.k"
    with pytest.raises(ValueError, match=words):
        load_trained(model, path)
    assert all(map(torch.equal, before, model.parameters()))
    path.write_text("{")
    with pytest.raises(ValueError, match="no readable tensors"):
        load_trained(model, path)
    with pytest.raises(ValueError, match="nothing to save"):
        save_trained(Transformer(CONFIG).requires_grad_(False), path)
