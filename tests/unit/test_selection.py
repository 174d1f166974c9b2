"""FishMask, Child-Tuning, AdaLoRA and DyLoRA, held to numbers and properties."""

import pytest
import torch
import torch.nn.functional as F

from minillm.adapt.lora import LoRA, add_lora, named_updates
from minillm.adapt.ranks import (
    Importance,
    add_adalora,
    add_dylora,
    draw_rank,
    keep_directions,
    orthogonality,
    rank_budget,
    set_rank,
)
from minillm.adapt.selection import add_sparse, drop_gradients, fisher_information, keep_largest
from minillm.adapt.wrap import merge, remove_adapters, trainable, unmerge
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer

CONFIG = llama_config(31, d_model=12, n_layers=2, n_heads=3, n_kv_heads=1, d_ff=20, max_length=16)
TOKENS = torch.randint(0, 31, (3, 7), generator=torch.Generator().manual_seed(0))
TARGETS = ("attention.q", "attention.v", "mlp.down")
LORA = LoRA(rank=4, alpha=6, targets=TARGETS)


def text_loss(model, row):
    return F.cross_entropy(model(row[None, :-1])[0], row[1:])


def move(learning):
    generator = torch.Generator().manual_seed(2)
    for p in learning.values():
        p.data += 0.5 * torch.randn(p.shape, generator=generator)


def test_fisher_information_squares_before_it_averages():
    """Two texts, the loss w·x: gradients 3 and −1, so (9 + 1) / 2 = 5 and not (3 − 1)² / 4 = 1."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    texts = [torch.tensor([3.0]), torch.tensor([-1.0])]
    fisher = fisher_information(model, texts, lambda m, x: m(x).sum(), ["0"])
    assert fisher["0"].tolist() == [[5.0]]
    with pytest.raises(ValueError, match="no texts"):
        fisher_information(model, [], lambda m, x: m(x).sum(), ["0"])


def test_exactly_k_are_kept_ties_or_not():
    scores = {"a": torch.tensor([[1.0, 5.0], [2.0, 2.0]]), "b": torch.tensor([4.0, 2.0])}
    masks = keep_largest(scores, 2)
    assert masks["a"].tolist() == [[False, True], [False, False]]
    assert masks["b"].tolist() == [True, False]
    for k in range(1, 7):
        assert sum(int(m.sum()) for m in keep_largest(scores, k).values()) == k
    for k in (0, 7):
        with pytest.raises(ValueError, match=f"k={k}: expected 1 to 6"):
            keep_largest(scores, k)


def test_fishmask_moves_the_chosen_numbers_and_no_others():
    model = Transformer(CONFIG)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    logits = model(TOKENS)
    masks = keep_largest(fisher_information(model, TOKENS, text_loss, TARGETS), 50)
    model(TOKENS).square().mean().backward()
    full = {name: p.grad.clone() for name, p in model.named_parameters()}

    learning = add_sparse(model, masks)
    assert sum(p.numel() for p in learning.values()) == 50
    torch.testing.assert_close(model(TOKENS), logits)
    model(TOKENS).square().mean().backward()
    q_rows = slice(0, 12)
    mask = masks["blocks.0.attention.q"]
    update = named_updates(model)["blocks.0.attention.q"]
    expected = full["blocks.0.attention.qkv.weight"][q_rows][mask]
    torch.testing.assert_close(update.values.grad, expected, rtol=1e-4, atol=1e-6)

    optimizer = torch.optim.AdamW(learning.values(), lr=0.1, weight_decay=0.5)
    optimizer.step()
    tuned = model(TOKENS)
    merge(model)
    torch.testing.assert_close(model(TOKENS), tuned, rtol=1e-4, atol=1e-5)
    remove_adapters(model)
    moved = {name: p != before[name] for name, p in model.named_parameters()}
    assert torch.equal(moved["blocks.0.attention.qkv.weight"][q_rows], mask)
    assert sum(int(m.sum()) for m in moved.values()) == 50


def test_masks_are_checked():
    model = Transformer(CONFIG)
    mask = torch.zeros(12, 12, dtype=torch.bool)
    for masks, words in (
        ({"blocks.0.attention.q": mask}, "the masks choose nothing"),
        ({"blocks.0.attention.k": mask}, r"bool \(12, 12\), expected bool \(4, 12\)"),
        ({"blocks.0.attention.q": mask.float()}, "is torch.float32"),
        ({"attention.q": mask}, "'attention.q' is not the full name of a part, such as blocks.0"),
        ({"blocks.9.attention.q": mask}, "no layer is called 'blocks.9.attention.q'"),
    ):
        with pytest.raises(ValueError, match=words):
            add_sparse(model, masks)
    assert all(p.requires_grad for p in model.parameters())


def test_dropped_gradients_stay_right_on_average():
    """Kept ones are divided by the share: 2 becomes 0 or 8 at a quarter, 2 on average."""
    p, untouched = torch.nn.Parameter(torch.zeros(40_000)), torch.nn.Parameter(torch.zeros(1))
    p.grad = torch.full_like(p, 2.0)
    drop_gradients([p, untouched], 0.25, torch.Generator().manual_seed(0))
    assert set(p.grad.tolist()) == {0.0, 8.0}
    assert abs(p.grad.mean() - 2) < 0.1  # five standard deviations are 0.09
    with pytest.raises(ValueError, match="keep=0: expected a share above 0"):
        drop_gradients([p], 0)


@pytest.mark.parametrize("add", [add_adalora, add_dylora])
def test_they_start_as_the_model_merge_and_come_off(add):
    model = Transformer(CONFIG)
    logits = model(TOKENS)
    learning = add(model, LORA)
    torch.testing.assert_close(model(TOKENS), logits, rtol=1e-5, atol=1e-6)
    move(learning)
    tuned = model(TOKENS)
    merge(model)
    torch.testing.assert_close(model(TOKENS), tuned, rtol=1e-3, atol=1e-4)
    unmerge(model)
    remove_adapters(model)
    assert torch.equal(model(TOKENS), logits)
    with pytest.raises(ValueError, match="dora=True"):
        add(model, LoRA(dora=True))


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_dylora_cut_off_is_a_lora_of_that_rank(rank):
    """Outputs and gradients; the directions behind the cut get none."""
    nested, plain = Transformer(CONFIG), Transformer(CONFIG)
    move(add_dylora(nested, LORA))
    add_lora(plain, LoRA(rank=rank, alpha=6, targets=TARGETS))
    for name, update in named_updates(plain).items():
        whole = named_updates(nested)[name]
        update.a.data, update.b.data = whole.a.data[:rank].clone(), whole.b.data[:, :rank].clone()
    set_rank(nested, rank)
    torch.testing.assert_close(nested(TOKENS), plain(TOKENS), rtol=1e-4, atol=1e-5)
    for model in (nested, plain):
        model(TOKENS).square().mean().backward()
    for name, update in named_updates(plain).items():
        whole = named_updates(nested)[name]
        torch.testing.assert_close(whole.a.grad[:rank], update.a.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(whole.b.grad[:, :rank], update.b.grad, rtol=1e-3, atol=1e-5)
        assert not whole.a.grad[rank:].any() and not whole.b.grad[:, rank:].any()


def test_every_rank_is_drawn_and_others_are_refused():
    model, generator = Transformer(CONFIG), torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="no DyLoRA updates"):
        draw_rank(model)
    add_dylora(model, LORA)
    drawn = [draw_rank(model, generator) for _ in range(100)]
    assert set(drawn) == {1, 2, 3, 4}
    assert all(update.rank == drawn[-1] for update in named_updates(model).values())
    for rank in (0, 5):
        with pytest.raises(ValueError, match=f"rank={rank}: expected 1 to 4"):
            set_rank(model, rank)


def test_the_budget_falls_as_a_cubic():
    """Half way between steps 10 and 50, an eighth of the way from 8 to 24 is left: 8 + 2."""
    budget = [rank_budget(step, 24, 8, begin=10, end=50) for step in (0, 10, 30, 50, 60)]
    assert budget == [24, 24, 10, 8, 8]
    with pytest.raises(ValueError, match="expected an end after the beginning"):
        rank_budget(1, 24, 8, begin=5, end=5)


def test_directions_that_matter_least_go_first_across_all_matrices():
    model = Transformer(CONFIG)
    learning = add_adalora(model, LORA)
    move(learning)
    names = list(named_updates(model))
    scores = {name: torch.arange(4.0) + 10 * i for i, name in enumerate(names)}
    kept = keep_directions(model, scores, 6)
    assert [int(mask.sum()) for mask in kept.values()] == [0] * (len(names) - 2) + [2, 4]
    last_but_one = named_updates(model)[names[-2]].values
    assert (last_but_one != 0).tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="no AdaLoRA updates"):
        Importance(Transformer(CONFIG))


def test_orthogonal_directions_cost_nothing():
    model = Transformer(CONFIG)
    add_adalora(model, LORA)
    updates = named_updates(model)
    for update in updates.values():
        update.p.data = torch.eye(len(update.p), 4)
        update.q.data = torch.eye(4, update.q.shape[1])
    assert orthogonality(model) == 0
    next(iter(updates.values())).q.data *= 2  # QQᵀ = 4·I, so 4 · 3²
    assert orthogonality(model) == 36
    assert len(trainable(model)) == 3 * len(updates)
