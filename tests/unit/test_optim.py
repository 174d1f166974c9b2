"""The optimiser and the schedule against PyTorch's own."""

import doctest

import pytest
import torch
from torch import nn

from minillm.train import optim
from minillm.train.optim import adamw, warmup_cosine


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.mix = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight  # tied: must be updated once
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, tokens):
        return self.head(self.norm(self.mix(self.embed(tokens))))


def step_both(ours, theirs, optimizer, reference, n=5):
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        tokens = torch.randint(7, (3, 4), generator=generator)
        for model, opt in ((ours, optimizer), (theirs, reference)):
            opt.zero_grad()
            model(tokens).logsumexp(-1).sum().backward()
            opt.step()


def test_adamw_decays_matrices_and_not_vectors():
    """The reference puts every parameter in a group of its own, decayed or not by name."""
    ours, theirs = Small(), Small()
    decayed = {"embed.weight", "mix.weight"}
    groups = [
        {"params": [p], "weight_decay": 0.3 if name in decayed else 0.0}
        for name, p in theirs.named_parameters()
    ]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), fused=False)
    step_both(ours, theirs, adamw(ours, lr=0.01, weight_decay=0.3), reference)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_adamw_leaves_frozen_parameters_alone():
    model = Small()
    model.mix.requires_grad_(False)
    handled = {id(p) for g in adamw(model, lr=0.1).param_groups for p in g["params"]}
    assert handled == {id(p) for p in model.parameters() if p.requires_grad}
    with pytest.raises(ValueError, match="no trainable parameter"):
        adamw(model.requires_grad_(False), lr=0.1)
    with pytest.raises(ValueError, match="neither may be negative"):
        adamw(Small(), lr=-1)


@pytest.mark.parametrize("warmup, total, floor", [(5, 30, 0.1), (1, 7, 0.0), (10, 11, 0.5)])
def test_schedule_equals_torch(warmup, total, floor):
    peak = 0.02
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, max(1, warmup - 1))
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=total - warmup, eta_min=floor * peak
    )
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[warmup])
    for step in range(total):
        ours = warmup_cosine(step, peak=peak, warmup_steps=warmup, total_steps=total, floor=floor)
        assert ours == pytest.approx(both.get_last_lr()[0], rel=1e-9), step
        optimizer.step()
        both.step()
    beyond = warmup_cosine(
        10 * total, peak=peak, warmup_steps=warmup, total_steps=total, floor=floor
    )
    assert beyond == pytest.approx(floor * peak)


def test_schedule_example_and_refusals():
    assert doctest.testmod(optim).failed == 0
    assert warmup_cosine(0, peak=1.0, warmup_steps=0, total_steps=5) == 1.0
    with pytest.raises(ValueError, match="step=-1"):
        warmup_cosine(-1, peak=1.0, warmup_steps=0, total_steps=5)
    with pytest.raises(ValueError, match="warmup_steps=6: expected between 0 and total_steps=5"):
        warmup_cosine(0, peak=1.0, warmup_steps=6, total_steps=5)
    with pytest.raises(ValueError, match=r"floor=1\.5"):
        warmup_cosine(0, peak=1.0, warmup_steps=1, total_steps=5, floor=1.5)
