"""The loop: exact accumulation, exact resume, and a clear stop when numbers break."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from minillm.data.packing import IGNORE, Batch, Batches
from minillm.train import checkpoint, losses
from minillm.train.loop import (
    TrainingDiverged,
    accumulate_gradients,
    evaluate,
    token_loss,
    train,
)

V = 13


class Tiny(nn.Module):
    """Embedding, one mixing layer over the past, tied output. The loop needs no more."""

    def __init__(self, seed=0):
        super().__init__()
        self.embed = nn.Embedding(V, 8)
        self.mix = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, tokens, documents=None):
        x = self.embed(tokens)
        past = x.cumsum(1) / torch.arange(1, tokens.shape[1] + 1).view(1, -1, 1)
        return self.norm(x + self.mix(past)) @ self.embed.weight.T


def make_batches(seed=0):
    generator = torch.Generator().manual_seed(100)
    documents = [
        [(start + i) % (V - 1) + 1 for i in range(int(n))]
        for start, n in torch.randint(1, 12, (40, 2), generator=generator)
    ]
    return Batches(
        documents,
        block_size=6,
        batch_size=3,
        end_token=0,
        generator=torch.Generator().manual_seed(seed),
    )


def weights(model):
    return {name: p.clone() for name, p in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def ragged_batches():
    """One batch of 4 rows, and the same rows as micro-batches with 11, 1 and 0 targets."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(V, (4, 6), generator=generator)
    targets = torch.randint(V, (4, 6), generator=generator)
    targets[1, 5:] = IGNORE
    targets[2, 1:] = IGNORE
    targets[3] = IGNORE
    whole = Batch(tokens, targets)
    parts = [Batch(tokens[i:j], targets[i:j]) for i, j in ((0, 2), (2, 3), (3, 4))]
    return whole, parts


def test_micro_batches_with_unequal_counts_are_one_batch():
    """The outside truth is autograd on F.cross_entropy's own mean over the whole batch."""
    whole, parts = ragged_batches()
    model = Tiny()
    expected = nn.functional.cross_entropy(
        model(whole.tokens).flatten(0, 1), whole.targets.flatten()
    )
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    for micro_batches in ([whole], parts):
        loss, count = accumulate_gradients(model, micro_batches)
        assert count == 12
        assert loss == pytest.approx(expected.item(), rel=1e-6)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


def test_a_step_with_nothing_to_score_is_zero_not_nan():
    _, parts = ragged_batches()
    model = Tiny()
    assert accumulate_gradients(model, parts[2:]) == (0.0, 1)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())
    assert evaluate(model, parts[2:]) == 0.0


def test_evaluate_weighs_every_target_alike_and_restores_the_mode():
    whole, parts = ragged_batches()
    model = Tiny().train()
    expected = losses.next_token_loss(model(whole.tokens), whole.targets).item()
    assert evaluate(model, parts) == pytest.approx(expected, rel=1e-6)
    assert model.training


def test_the_loop_is_the_textbook_loop():
    """Ten steps by hand, with torch's AdamW, clip_grad_norm_ and schedulers."""
    ours, theirs = Tiny(), Tiny()
    history = train(
        ours, make_batches(), steps=10, lr=0.05, warmup_steps=3, clip=0.2, progress=False
    )
    decay = [p for p in theirs.parameters() if p.ndim > 1]
    free = [p for p in theirs.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": free, "weight_decay": 0.0}],
        lr=0.05,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 3, 1.0, 2),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7, eta_min=0.005),
        ],
        milestones=[3],
    )
    for step, batch in zip(range(10), make_batches().forever(), strict=False):
        logits = theirs(batch.tokens).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, batch.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.2)
        assert history.losses[step] == pytest.approx(loss.item(), rel=1e-4)
        assert history.gradient_norms[step] == pytest.approx(norm.item(), rel=1e-3)
        assert history.lrs[step] == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert max(history.gradient_norms) > 0.2  # so the clipping was tested
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert history.n_tokens == 10 * 18 and history.tokens_per_second > 0


def test_it_learns_and_evaluates_on_time(capsys):
    model, held_out = Tiny(), list(make_batches(seed=5))
    history = train(
        model,
        make_batches(),
        steps=150,
        lr=0.05,
        evaluate=lambda m: evaluate(m, held_out),
        evaluate_every=60,
    )
    assert [step for step, _ in history.evals] == [60, 120, 150]
    assert history.evals[-1][1] < 0.5 * history.losses[0]
    assert "150/150" in capsys.readouterr().out


def test_nan_stops_before_the_update(tmp_path):
    """The seventh batch is poisoned: weights stay those after step 5, the checkpoint's after 4."""

    def run(steps, poison, path):
        model = Tiny()
        seen = []

        def loss_fn(model, batch):
            loss, count = token_loss(model, batch)
            seen.append(1)
            return loss * (math.nan if len(seen) == poison else 1.0), count

        try:
            train(
                model,
                make_batches(),
                steps=steps,
                lr=0.01,
                warmup_steps=0,
                loss_fn=loss_fn,
                checkpoint=path,
                checkpoint_every=2,
                progress=False,
            )
        finally:
            run.weights = weights(model)

    path = tmp_path / "run.safetensors"
    with pytest.raises(TrainingDiverged, match=r"step 5: the loss is nan") as caught:
        run(8, 6, path)
    assert f"{path} holds the whole state after 4 steps" in str(caught.value)
    assert all(p.isfinite().all() for p in run.weights.values())
    poisoned = run.weights
    with pytest.raises(TrainingDiverged, match="step 0"):
        run(8, 1, None)
    assert same(run.weights, weights(Tiny()))
    assert not same(poisoned, weights(Tiny()))


SETTINGS = {"steps": 1000, "lr": 0.02, "accumulate": 2, "checkpoint_every": 7, "progress": False}


def noisy_loss(generator):
    """A loss that draws from its own generator, so that resuming must restore that too."""

    def loss_fn(model, batch):
        loss, count = token_loss(model, batch)
        return loss * (1 + 0.1 * torch.rand((), generator=generator)), count

    return loss_fn


def run_settings(path, **changes):
    """The run that the kill test starts, kills and continues."""
    model, generator = Tiny(), torch.Generator().manual_seed(9)
    history = train(
        model,
        make_batches(),
        loss_fn=noisy_loss(generator),
        generators=[generator],
        checkpoint=path,
        **(SETTINGS | changes),
    )
    return model, history


def test_killed_at_random_points_it_ends_with_the_same_bits(tmp_path):
    path = tmp_path / "run.safetensors"
    command = [
        sys.executable,
        "-c",
        "import sys; sys.path.insert(0, sys.argv[1]); import torch; torch.set_num_threads(1);"
        "import test_loop; test_loop.run_settings(sys.argv[2])",
        str(Path(__file__).parent),
        str(path),
    ]

    def updates_saved():
        return len(checkpoint.load(path)["history"]["steps"]) if path.exists() else 0

    where = torch.randint(10, 90, (3,), generator=torch.Generator().manual_seed(os.getpid()))
    killed_at = []
    for distance in where.tolist():
        goal = updates_saved() + distance
        process = subprocess.Popen(command)
        while updates_saved() < goal and process.poll() is None:
            pass
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed_at.append(updates_saved())
    assert killed_at == sorted(set(killed_at)) and killed_at[-1] < SETTINGS["steps"]

    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    resumed, resumed_history = run_settings(path)
    straight, history = run_settings(tmp_path / "other.safetensors")
    torch.set_num_threads(torch_threads)
    assert same(weights(resumed), weights(straight))
    assert resumed_history.losses == history.losses and resumed_history.lrs == history.lrs


def test_a_finished_run_is_not_trained_again(tmp_path):
    path = tmp_path / "run.safetensors"
    first, _ = run_settings(path, steps=20)
    before = path.read_bytes()
    again, history = run_settings(path, steps=20)
    assert same(weights(first), weights(again)) and len(history.steps) == 20
    assert path.read_bytes() == before


def test_refuses(tmp_path):
    path = tmp_path / "run.safetensors"
    run_settings(path, steps=10)
    with pytest.raises(ValueError, match="belongs to another run"):
        run_settings(path, steps=11)
    with pytest.raises(ValueError, match="pass a Batches"):
        train(Tiny(), list(make_batches()), steps=5, lr=0.1, checkpoint=path)
    with pytest.raises(ValueError, match="ran out at step 2"):
        train(Tiny(), list(make_batches())[:2], steps=5, lr=0.1, progress=False)
    for setting in ({"steps": 0}, {"evaluate_every": -1}, {"checkpoint_every": 0}):
        name, value = next(iter(setting.items()))
        with pytest.raises(ValueError, match=f"{name}={value}: expected at least 1"):
            train(Tiny(), make_batches(), **{"steps": 5, "lr": 0.1, **setting})
    with pytest.raises(ValueError, match="clip=0"):
        train(Tiny(), make_batches(), steps=5, lr=0.1, clip=0)
    with pytest.raises(ValueError, match="warmup_steps=9"):
        train(Tiny(), make_batches(), steps=5, lr=0.1, warmup_steps=9)
    other = nn.Sequential(nn.Embedding(V, 4), nn.Linear(4, V))
    with pytest.raises(ValueError, match="written by a different model"):
        train(other, make_batches(), checkpoint=path, **(SETTINGS | {"steps": 10}))
