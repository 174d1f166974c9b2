"""The one training loop. Pre-training, and later fine-tuning and alignment, differ in the loss.

B batch, T time, V vocabulary.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from minillm.data.packing import IGNORE, Batch
from minillm.train.checkpoint import OneFile, Store
from minillm.train.losses import chunked_loss, next_token_loss
from minillm.train.optim import adamw, warmup_cosine
from minillm.train.precision import LossScale, in_precision
from minillm.train.spikes import SpikeGuard

LossFn = Callable[[nn.Module, Batch], tuple[torch.Tensor, int]]
MakeOptimizer = Callable[[nn.Module, float, float], torch.optim.Optimizer]


class Alone:
    """One process trains by itself. Several that train together are a `team.Team`."""

    size = 1  # how many processes read different rows

    def sum(self, *numbers: float) -> list[float]:
        """Each number, added up over the processes that read different rows."""
        return list(numbers)

    def clip(self, model: nn.Module, max_norm: float) -> float:
        """Scale all gradients down to a joint norm of `max_norm`; return the norm before."""
        return float(nn.utils.clip_grad_norm_(model.parameters(), max_norm))


ALONE = Alone()


class TrainingDiverged(RuntimeError):
    """The loss or its gradient stopped being a number. The update was not applied."""


@dataclass
class History:
    """What happened at each step. Losses are means in nats per token; rates are what was used."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)  # before clipping
    evals: list[tuple[int, float]] = field(default_factory=list)  # (updates done, evaluate(model))
    skipped: list[int] = field(default_factory=list)  # steps whose update was left out
    rollbacks: list[int] = field(default_factory=list)  # steps that ended in an earlier state
    n_tokens: int = 0
    seconds: float = 0.0  # without the time for evaluation and checkpoints

    @property
    def tokens_per_second(self) -> float:
        return self.n_tokens / self.seconds if self.seconds else 0.0

    def applied_norms(self, n: int) -> list[float]:
        """Gradient norms of the last `n` steps that changed the weights, latest first."""
        skipped = set(self.skipped)
        pairs = zip(reversed(self.steps), reversed(self.gradient_norms), strict=True)
        return list(islice((norm for step, norm in pairs if step not in skipped), n))


def token_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """The loop's default loss: summed next-token loss, and how many targets it is the sum of."""
    if batch.documents is None:
        logits = model(batch.tokens)  # (B, T, V)
    else:
        logits = model(batch.tokens, documents=batch.documents)
    n_targets = int((batch.targets != IGNORE).sum())
    return next_token_loss(logits, batch.targets, reduction="sum"), n_targets


def chunked_token_loss(
    model: nn.Module, batch: Batch, n_rows: int = 64
) -> tuple[torch.Tensor, int]:
    """`token_loss`, with logits only where something is learned, and `n_rows` of them at a time.

    A row of logits is as long as the vocabulary: with a large one, or where questions have no
    targets, this saves a good part of a step's memory and time.
    """
    learned = batch.targets != IGNORE  # (B, T)
    if batch.documents is None:
        hidden = model.hidden(batch.tokens)  # (B, T, C)
    else:
        hidden = model.hidden(batch.tokens, documents=batch.documents)
    hidden, targets = hidden[learned], batch.targets[learned]  # (N, C), (N,)
    weights = [weight for weight in model.unembed.parameters() if weight.requires_grad]
    return chunked_loss(model.logits, hidden, targets, weights, n_rows), len(targets)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_fn: LossFn = token_loss,
    team: Alone = ALONE,
) -> float:
    """Mean loss per target over finite `batches`, each target weighing the same.

    The model is switched to evaluation mode and back. In a team each process passes its own rows,
    as many batches as the others.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for batch in batches:
        loss, n = loss_fn(model, batch.to(device))
        total += float(loss)
        count += n
    model.train(was_training)
    total, count = team.sum(total, count)
    return total / max(count, 1)


def accumulate_gradients(
    model: nn.Module,
    micro_batches: Sequence[Batch],
    loss_fn: LossFn = token_loss,
    scale: float = 1.0,
    team: Alone = ALONE,
) -> tuple[float, int]:
    """Leave in `.grad` the gradient of the mean loss over all the targets of all micro-batches.

    Micro-batches may have different numbers of targets, so their means must not be averaged:
    the gradients of the *sums* add up, and one division by the total count ends the step. On the
    way they are `scale` times as large, see `LossScale`. The targets are those of the whole team.

    Returns:
        The mean loss, and the number of targets.
    """
    model.zero_grad(set_to_none=True)
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for batch in micro_batches:
        loss, n = loss_fn(model, batch.to(device))
        (loss * scale).backward()
        total += float(loss.detach())
        count += n
    total, count = team.sum(total, count)
    count = max(int(count), 1)
    # PyTorch averages the gradients of a team's processes; we want their sum.
    divisor = count * scale / team.size
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.div_(divisor)
    return total / count, count


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    steps: int,
    lr: float,
    warmup_steps: int | None = None,
    weight_decay: float = 0.1,
    accumulate: int = 1,
    clip: float = 1.0,
    loss_fn: LossFn = token_loss,
    optimizer: MakeOptimizer = adamw,
    precision: str = "fp32",
    guard: SpikeGuard | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    evaluate_every: int | None = None,
    checkpoint: str | Path | Store | None = None,
    checkpoint_every: int = 100,
    generators: Sequence[torch.Generator] = (),
    team: Alone = ALONE,
    progress: bool = True,
) -> History:
    """Train `model` in place with warm-up and a cosine down to a tenth of the rate.

    If `checkpoint` exists, training continues from it, and ends with the same weights,
    bit for bit, as if it had never stopped: run the same call again after a crash.

    Args:
        batches: a `Batches`, taken epoch after epoch, or any iterable that yields enough batches.
        steps: updates of the weights; each uses `accumulate` batches.
        lr: the highest learning rate, reached after `warmup_steps` (default: a tenth of `steps`).
        clip: the largest gradient norm allowed; longer gradients are scaled down to it.
        loss_fn: (model, batch) -> (summed loss, number of targets it sums over).
        optimizer: (model, lr, weight_decay) -> the optimiser; its groups share one rate.
        precision: of the matrix products: "fp32", "bf16", or "fp16" with a `LossScale`.
        guard: leaves out steps with a spike in the gradient; when they last, goes back to the
            checkpoint's weights, and on with the data and the schedule.
        evaluate: called as evaluate(model) after every `evaluate_every` steps and after the last.
        checkpoint: file for weights, optimiser, position in the data, generators and history,
            written after every `checkpoint_every` steps and after the last; or another `Store`.
        generators: generators that `loss_fn` draws from; saved and restored with the rest.
        team: the processes that train this model together, each with a call like this one.
        progress: show a text bar with the loss and the time left.

    Raises:
        ValueError: impossible settings, too few batches, or a checkpoint of a different run.
        TrainingDiverged: the loss or gradient is not finite, or the guard has nothing to go back
            to; says at which step, and what is safe.
    """
    loss_fn = in_precision(loss_fn, precision)
    settings = _settings(steps, lr, warmup_steps, weight_decay, accumulate, clip)
    settings |= {"precision": precision, "guard": guard and asdict(guard)}
    evaluate_every = evaluate_every or steps
    _at_least_one(evaluate_every=evaluate_every, checkpoint_every=checkpoint_every)
    if checkpoint is not None and not hasattr(batches, "state_dict"):
        raise ValueError("checkpoint needs batches that know their position: pass a Batches")
    store = OneFile(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
    scale = LossScale() if precision == "fp16" else None
    optimizer = optimizer(model, lr, weight_decay)
    run = _Run(
        model, optimizer, batches, generators, History(), settings, store, scale, guard, team
    )
    if store and store.exists():
        run.load()
    stream = batches.forever() if hasattr(batches, "forever") else iter(batches)

    model.train()
    done, quiet = len(run.history.steps), not progress
    with tqdm(total=steps, initial=done, disable=quiet, file=sys.stdout, mininterval=1) as bar:
        for step in range(done, steps):
            loss = run.update(step, stream, loss_fn)
            last = step + 1 == steps
            if evaluate and (last or (step + 1) % evaluate_every == 0):
                run.history.evals.append((step + 1, evaluate(model)))
            # While steps are being left out, the weights may be what is wrong: keep older ones.
            due = (step + 1) % checkpoint_every == 0 and run.n_spikes == 0
            if store and (last or due):
                run.save()
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()
    return run.history


def _settings(steps, lr, warmup_steps, weight_decay, accumulate, clip) -> dict:
    """The numbers that define a run, checked. A checkpoint of other numbers is another run."""
    _at_least_one(steps=steps, accumulate=accumulate)
    if not clip > 0:
        raise ValueError(f"clip={clip}: expected above 0; use math.inf for no clipping")
    warmup_steps = steps // 10 if warmup_steps is None else warmup_steps
    warmup_cosine(0, peak=lr, warmup_steps=warmup_steps, total_steps=steps)  # checks the warm-up
    return {
        "steps": steps,
        "lr": lr,
        "warmup_steps": warmup_steps,
        "weight_decay": weight_decay,
        "accumulate": accumulate,
        "clip": clip,
    }


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}: expected at least 1")


def _take(stream: Iterator[Batch], n: int, step: int) -> list[Batch]:
    micro_batches = list(islice(stream, n))
    if len(micro_batches) < n:
        raise ValueError(f"the batches ran out at step {step}: pass a Batches, which never ends")
    return micro_batches


@dataclass
class _Run:
    """Everything that has to survive a crash, and how one update changes it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Iterable[Batch]
    generators: Sequence[torch.Generator]
    history: History
    settings: dict
    store: Store | None  # of checkpoints
    scale: LossScale | None  # with float16
    guard: SpikeGuard | None
    team: Alone
    n_spikes: int = 0  # in a row, up to now

    def update(self, step: int, stream: Iterator[Batch], loss_fn: LossFn) -> float:
        """Change the weights once and note it in the history; the mean loss before the change."""
        started = time.perf_counter()
        rate = warmup_cosine(
            step,
            peak=self.settings["lr"],
            warmup_steps=self.settings["warmup_steps"],
            total_steps=self.settings["steps"],
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        micro_batches = _take(stream, self.settings["accumulate"], step)
        scale = self.scale.scale if self.scale else 1.0
        loss, count = accumulate_gradients(self.model, micro_batches, loss_fn, scale, self.team)
        norm = self.team.clip(self.model, self.settings["clip"])
        history, verdict = self.history, self.judge(loss, norm)
        if verdict == "apply":
            self.optimizer.step()
        elif verdict == "skip":
            history.skipped.append(step)
        elif verdict == "roll back" and self.can_roll_back(step):
            self.store.restore(self.model, self.optimizer)
            history.skipped.append(step)
            history.rollbacks.append(step)
            self.n_spikes = 0
        else:
            raise TrainingDiverged(self.diverged(step, loss, norm, rate))

        history.steps.append(step)
        history.losses.append(loss)
        history.lrs.append(rate)
        history.gradient_norms.append(norm)
        history.n_tokens += count
        history.seconds += time.perf_counter() - started
        return loss

    def judge(self, loss: float, norm: float) -> str:
        """What to do with this step's gradient: "apply", "skip", "roll back" or "stop"."""
        finite = math.isfinite(loss + norm)
        if self.scale and math.isfinite(loss):
            self.scale.update(finite)
            if not finite and self.scale.may_shrink:
                return "skip"  # only the scale was too large
        if self.guard is None:
            return "apply" if finite else "stop"
        usual = self.history.applied_norms(self.guard.window)
        if not self.guard.is_spike(usual, loss, norm):
            self.n_spikes = 0
            return "apply"
        self.n_spikes += 1
        return "skip" if self.n_spikes < self.guard.patience else "roll back"

    def can_roll_back(self, step: int) -> bool:
        """There is a checkpoint, and it was not of no use just before."""
        last = self.history.rollbacks[-1] if self.history.rollbacks else -math.inf
        return bool(self.store and self.store.exists()) and step - last > self.guard.patience

    def diverged(self, step: int, loss: float, norm: float, rate: float) -> str:
        """The error message: what broke, at which step, and from where to go on."""
        text = (
            f"step {step}: the loss is {loss} and the gradient norm {norm}, at learning rate "
            f"{rate:.2g}. The update was not applied: the model keeps the weights it had before"
        )
        if self.store and self.store.exists():
            after = len(self.store.read(self.rest())["history"]["steps"])
            text += f", and {self.store} holds the whole state after {after} steps"
        return text + ". Lower lr, lengthen warmup_steps, or look at this step's batch."

    def rest(self) -> dict:
        """What has to be saved besides the model and the optimiser."""
        return {
            "batches": self.batches.state_dict(),
            "generators": [generator.get_state() for generator in self.generators],
            "history": asdict(self.history),
            "scale": self.scale and asdict(self.scale),
            "settings": self.settings,
        }

    def save(self) -> None:
        self.store.save(len(self.history.steps), self.model, self.optimizer, self.rest())

    def load(self) -> None:
        state = self.store.read(self.rest())
        if state.get("settings") != self.settings:
            raise ValueError(
                f"{self.store} belongs to another run, with {state.get('settings')}; this one has "
                f"{self.settings}. Use the same settings, another file, or delete it to start anew"
            )
        self.store.restore(self.model, self.optimizer)
        self.batches.load_state_dict(state["batches"])
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved)
        self.history = History(**state["history"])
        self.scale = self.scale and LossScale(**state["scale"])
