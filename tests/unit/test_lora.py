"""What LoRA promises by itself: where it starts, what it trains, what it refuses."""

import json

import pytest
import torch
from torch import nn

from minillm.adapt.lora import AddLowRank, LoRA, add_lora
from minillm.adapt.lora_files import load_adapters, save_adapters
from minillm.adapt.parts import linear_parts
from minillm.adapt.quant import Format
from minillm.adapt.quant_linear import QuantLinear
from minillm.adapt.quant_model import quantize_linears
from minillm.adapt.wrap import merge, remove_adapters, trainable
from minillm.model.config import gpt2_config, llama_config
from minillm.model.transformer import Transformer
from minillm.train.memory import TensorMemory

CONFIG = llama_config(31, d_model=12, n_layers=2, n_heads=3, n_kv_heads=1, d_ff=20, max_length=9)
TOKENS = torch.randint(0, 31, (3, 7), generator=torch.Generator().manual_seed(0))
EVERYWHERE = tuple(f"attention.{x}" for x in ("q", "k", "v", "out")) + tuple(
    f"mlp.{x}" for x in ("gate", "up", "down")
)


def test_parts_cover_every_row_once():
    """The parts of a fused layer, one below the other, are the layer."""
    parts = linear_parts(Transformer(CONFIG))
    for layer, names in (("attention.qkv", "qkv"), ("mlp.gate_up", ("gate", "up"))):
        whole = parts[f"blocks.1.{layer}"]
        room = layer.split(".")[0]
        ranges = [parts[f"blocks.1.{room}.{name}"].rows for name in names]
        assert [r.start for r in ranges] == [0] + [r.stop for r in ranges[:-1]]
        assert ranges[-1].stop == whole.rows.stop


@pytest.mark.parametrize("dora", [False, True])
def test_a_fresh_adapter_changes_nothing(dora):
    model = Transformer(CONFIG)
    before = model(TOKENS)
    add_lora(model, LoRA(targets=EVERYWHERE, dora=dora))
    torch.testing.assert_close(model(TOKENS), before, rtol=1e-5, atol=1e-6)


def test_only_the_adapter_learns():
    model = Transformer(CONFIG)
    before = {name: p.clone() for name, p in model.named_parameters()}
    adapters = add_lora(model, LoRA(rank=2, targets=("attention.q", "mlp.up")))
    # Rank 2: A (2, 12) and B (12 or 20, 2), in both layers.
    assert sum(p.numel() for p in adapters.values()) == 2 * (2 * 12 + 12 * 2 + 2 * 12 + 20 * 2)
    optimizer = torch.optim.SGD(adapters.values(), lr=1.0)
    for _ in range(2):  # B moves first, then A can
        optimizer.zero_grad()
        model(TOKENS).square().mean().backward()
        optimizer.step()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    remove_adapters(model)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name
    moved = [not torch.equal(p, torch.zeros_like(p)) for n, p in adapters.items() if n[-1] == "b"]
    assert all(moved)


def test_scale_is_alpha_over_rank_or_its_root():
    assert LoRA(rank=4, alpha=8).scale == 2
    assert LoRA(rank=4, alpha=8, rank_stabilized=True).scale == 4


def test_merged_adapters_can_be_kept_as_plain_layers():
    model = Transformer(CONFIG)
    for p in add_lora(model, LoRA(targets=EVERYWHERE)).values():
        p.data.normal_(generator=torch.Generator().manual_seed(3))
    adapted = model(TOKENS)
    merge(model)
    remove_adapters(model)
    assert not trainable(model)
    assert {type(m) for m in model.modules() if "Linear" in type(m).__name__} == {nn.Linear}
    torch.testing.assert_close(model(TOKENS), adapted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "targets, words",
    [
        (("attention.query",), "no layer is called 'attention.query'; there are attention.k, att"),
        (("tion.q",), "no layer is called 'tion.q'"),
        (("attention.q", "attention.qkv"), "are the same rows; name only one"),
    ],
)
def test_targets_are_refused_before_anything_changes(targets, words):
    model = Transformer(CONFIG)
    with pytest.raises(ValueError, match=words):
        add_lora(model, LoRA(targets=targets))
    assert all(p.requires_grad for p in model.parameters())
    add_lora(model, LoRA())
    with pytest.raises(ValueError, match="already has adapters"):
        add_lora(model, LoRA())


@pytest.mark.parametrize("changes", [{"rank": 0}, {"alpha": 0.0}, {"targets": ()}])
def test_choices_are_checked(changes):
    with pytest.raises(ValueError, match="expected a rank of at least 1"):
        LoRA(**changes)


def test_a_bad_adapter_file_is_refused_and_the_model_left_alone(tmp_path):
    model, lora = Transformer(CONFIG), LoRA(targets=("attention.q",))
    add_lora(model, lora)
    save_adapters(model, tmp_path / "good", "llama", lora)
    settings_file = tmp_path / "good" / "adapter_config.json"
    settings = json.loads(settings_file.read_text())
    for change, words in (
        ({"peft_type": "IA3"}, "only LORA adapters are read"),
        ({"rank_pattern": {"q_proj": 3}}, "rank_pattern=.* cannot express"),
        ({"r": 5}, r"layers.0.self_attn.q_proj.lora_A.weight has shape \(8, 12\), expected \(5, 1"),
    ):
        settings_file.write_text(json.dumps({**settings, **change}))
        fresh = Transformer(CONFIG)
        with pytest.raises(ValueError, match=words):
            load_adapters(fresh, tmp_path / "good", "llama")
        assert fresh.state_dict().keys() == Transformer(CONFIG).state_dict().keys()
    settings_file.write_text("{")
    with pytest.raises(ValueError, match="no readable adapter"):
        load_adapters(Transformer(CONFIG), tmp_path / "good", "llama")


def test_saving_needs_adapters_and_published_names(tmp_path):
    with pytest.raises(ValueError, match="no adapters to save"):
        save_adapters(Transformer(CONFIG), tmp_path / "a", "llama", LoRA())
    model, lora = Transformer(gpt2_config(31, d_model=12, n_heads=3)), LoRA()
    add_lora(model, lora)
    with pytest.raises(ValueError, match="a gpt2 has no tensor for blocks"):
        save_adapters(model, tmp_path / "b", "gpt2", lora)
    assert list(tmp_path.iterdir()) == []


def low_rank_terms():
    """y (2, 3, 7), x (2, 3, 4) and the factors of two updates of its rows, in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 7), (2, 3, 4), (2, 4), (3, 2), (1, 4), (2, 1))
    terms = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [term.requires_grad_() for term in terms], [(slice(0, 3), 0.5), (slice(5, 7), 3.0)]


def test_updates_are_added_where_they_belong_and_their_gradient_is_exact():
    """As written out, and by finite differences; also where no gradient of the input is asked."""
    (y, x, *factors), low = low_rank_terms()
    expected = y.clone()
    for (rows, scale), a, b in zip(low, factors[::2], factors[1::2], strict=True):
        expected[..., rows] += scale * (x @ a.T @ b.T)
    torch.testing.assert_close(AddLowRank.apply(y.clone(), x, low, *factors), expected)

    def added(y, x, *factors):
        return AddLowRank.apply(y.clone(), x, low, *factors).sin()

    assert torch.autograd.gradcheck(added, (y, x, *factors))
    assert torch.autograd.gradcheck(added, (y.detach(), x.detach(), *factors))


def test_updates_of_a_layer_keep_its_input_once():
    """For the backward pass: no second input, and nothing as wide as the output."""
    model = Transformer(CONFIG)
    add_lora(model, LoRA(rank=2, targets=("attention.q", "attention.k", "attention.v")))
    layer = model.blocks[0].attention.qkv
    x = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with TensorMemory(layer, x) as memory:
        before = memory.live
        y = layer(x)
        assert memory.live - before == y.nbytes + 3 * (15 * 2) * 4  # and A x of each
    assert y.requires_grad


def test_adapters_are_put_on_a_quantised_model_without_unpacking_it(monkeypatch):
    model = Transformer(CONFIG)
    quantize_linears(model, Format("nf4", 4, 4), ("attention.qkv", "mlp.gate_up", "mlp.down"))
    monkeypatch.setattr(QuantLinear, "weight", property(lambda _: pytest.fail("unpacked")))
    assert len(add_lora(model, LoRA(targets=EVERYWHERE))) == 2 * 7 * 2
