"""Muon against torch.optim.Muon, its AdamW against torch's, and Newton–Schulz against the SVD."""

import pytest
import torch
from test_loop import make_batches
from torch import nn

from minillm.model.config import MoE, gpt2_config, llama_config
from minillm.model.transformer import Transformer
from minillm.train.loop import train
from minillm.train.muon import QUINTIC, Muon, muon, newton_schulz


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(5, 5), (3, 9), (17, 6), (2, 4, 7)])
def test_newton_schulz_is_the_quintic_of_the_singular_values(shape):
    """Outside truth: an SVD in double precision, and the scalar polynomial five times."""
    matrix = randn(*shape).double()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    a, b, c = QUINTIC
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    expected = u * s.unsqueeze(-2) @ v
    torch.testing.assert_close(newton_schulz(matrix, dtype=torch.float64), expected)
    torch.testing.assert_close(newton_schulz(matrix).double(), expected, rtol=1e-3, atol=1e-4)


def test_newton_schulz_flattens_a_steep_spectrum():
    u, _, v = torch.linalg.svd(randn(40, 60), full_matrices=False)
    s = torch.logspace(0, -2, 40)
    flat = torch.linalg.svdvals(newton_schulz(u * s @ v))
    assert 0.3 < flat.min() < flat.max() < 1.3 and flat.max() / flat.min() < 4 < 100
    assert not newton_schulz(torch.zeros(3, 4)).any()
    with pytest.raises(ValueError, match="expected a matrix"):
        newton_schulz(torch.ones(3))


@pytest.mark.parametrize("shape", [(6, 6), (4, 11), (13, 5)])
def test_muon_is_torchs_muon(shape):
    """Ten steps in bfloat16, as torch computes, with gradients of very different sizes."""
    ours, theirs = nn.Parameter(randn(*shape)), nn.Parameter(randn(*shape))
    groups = [{"params": [ours], "rule": "muon"}]
    optimizer = Muon(groups, lr=0.03, weight_decay=0.2, momentum=0.9, dtype=torch.bfloat16)
    reference = torch.optim.Muon(
        [theirs], lr=0.03, weight_decay=0.2, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(10):
        gradient = randn(*shape, seed=step + 1) * 10.0 ** (step % 3)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    # Both round to bfloat16 (3 digits) in a different order of products.
    moved = (theirs - randn(*shape)).abs().max()
    assert moved > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.03 * moved.item())


def test_muon_is_torchs_muon_to_the_digit_in_the_same_arithmetic(monkeypatch):
    """With torch's bfloat16 turned into float32, nothing is left to tell the two apart."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    ours, theirs = nn.Parameter(randn(7, 12)), nn.Parameter(randn(7, 12))
    optimizer = Muon([{"params": [ours], "rule": "muon"}], lr=0.03, weight_decay=0.2)
    reference = torch.optim.Muon(
        [theirs], lr=0.03, weight_decay=0.2, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(10):
        ours.grad, theirs.grad = randn(7, 12, seed=step + 1), randn(7, 12, seed=step + 1)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_rest_is_adamw():
    ours, theirs = nn.Parameter(randn(4, 3)), nn.Parameter(randn(4, 3))
    optimizer = Muon([{"params": [ours]}], lr=0.05, weight_decay=0.3, betas=(0.8, 0.9))
    reference = torch.optim.AdamW(
        [theirs], lr=0.05, weight_decay=0.3, betas=(0.8, 0.9), fused=False
    )
    for step in range(7):
        ours.grad = randn(4, 3, seed=step + 1) * 0.01
        theirs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "config",
    [
        gpt2_config(13, d_model=12, n_layers=2, n_heads=2, max_length=8),
        llama_config(13, d_model=12, n_layers=2, n_heads=2, moe=MoE(4, 2, 8)),
    ],
)
def test_who_is_moved_by_what(config):
    """Every parameter once; blocks' matrices by Muon, experts too; vectors without decay."""
    model = Transformer(config)
    optimizer = muon(model, lr=0.1, weight_decay=0.3)
    rules = {p: (g["rule"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(rules) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        if p.ndim < 2:
            assert rules[p] == ("adamw", 0.0), name
        else:
            assert rules[p] == ("muon" if name.startswith("blocks.") else "adamw", 0.3), name
    model.blocks.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to do"):
        muon(model, lr=0.1)
    with pytest.raises(ValueError, match="neither may be negative"):
        Muon([{"params": [nn.Parameter(randn(2, 2))]}], lr=-1)


def test_the_loop_trains_with_it_and_resumes_to_the_bit(tmp_path):
    def attempt(path, n_batches=10**6):
        model = Transformer(gpt2_config(13, d_model=12, n_layers=2, n_heads=2, max_length=8))
        calls = iter(range(n_batches))

        def loss_fn(model, batch):
            next(calls)
            scores = model(batch.tokens).flatten(0, 1)
            return nn.functional.cross_entropy(scores, batch.targets.flatten()), 1

        history = train(
            model, make_batches(), steps=60, lr=0.02, optimizer=muon, loss_fn=loss_fn,
            checkpoint=path, checkpoint_every=7, progress=False,
        )  # fmt: skip
        return model, history

    straight, history = attempt(tmp_path / "a.safetensors")
    assert history.losses[-1] < 0.6 * history.losses[0]
    with pytest.raises(StopIteration):
        attempt(tmp_path / "b.safetensors", n_batches=31)
    resumed, _ = attempt(tmp_path / "b.safetensors")
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
