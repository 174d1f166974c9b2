"""Checks for the exercises of lesson 22. Each names the mistake it recognises.

B rows or pairs, T time, V vocabulary, N checkpoints, K judgements of each.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from minillm.align import advantages as estimators
from minillm.align import ppo, reward
from minillm.align.logprobs import masked_row_mean, token_log_probs
from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)
from minillm.data.packing import IGNORE


def reward_loss(student: Callable, *, seed: int = 0) -> None:
    """Value and gradients against the package's, and differences of a thousand."""
    chosen, rejected = 2 * torch.randn(2, 7, generator=torch.Generator().manual_seed(seed))
    apart = chosen - rejected
    answer = student(chosen, rejected)
    assert_shape(answer, (), "your loss", {"average over the pairs": (7,)})
    assert_close(
        answer,
        reward.bradley_terry_loss(chosen, rejected),
        name="your loss",
        mistakes={
            "your sign is turned round: a loss falls as the chosen pulls ahead": F.logsigmoid(
                apart
            ).mean(),
            "chosen and rejected are swapped": -F.logsigmoid(-apart).mean(),
            "you add up over the pairs; average": -F.logsigmoid(apart).sum(),
            "you forgot the logarithm": -apart.sigmoid().mean(),
            "you take the logarithm of the average; average the logarithms": (
                -apart.sigmoid().mean().log()
            ),
            "your loss looks at each response alone; only their difference counts": (
                -F.logsigmoid(chosen).mean() - F.logsigmoid(-rejected).mean()
            ),
        },
    )
    far = torch.tensor([1000.0, -1000.0])
    assert_close(
        student(far, -far),
        torch.tensor(1000.0),
        name="your loss at differences of 2000",
        mistakes={
            "your loss is infinite at large differences: σ rounds to 0, use logsigmoid": torch.inf
        },
    )
    assert_same_gradients(
        student, reward.bradley_terry_loss, (chosen, rejected), name="reward_loss"
    )
    refuses(student, chosen, rejected[:6], words="pairs")
    refuses(student, chosen, rejected[:1], words="pairs")


def advantages(student: Callable, *, seed: int = 0) -> None:
    """One response against the package's, at several gamma and lambda."""
    rewards, values = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(1, 9, dtype=torch.bool)

    def gae(gamma: float, lam: float, r: Tensor = rewards, **more) -> Tensor:
        return estimators.gae(r[None], values[None], mask, gamma=gamma, lam=lam, **more)[0][0]

    def forward(gamma: float, lam: float) -> Tensor:
        """The carried advantage walks the wrong way."""
        later = torch.cat([values[1:], torch.zeros(1)])
        delta, carried, found = rewards + gamma * later - values, 0.0, []
        for d in delta:
            carried = d + gamma * lam * carried
            found.append(carried)
        return torch.stack(found)

    for gamma, lam in ((0.9, 0.7), (1.0, 0.0), (1.0, 1.0)):
        answer = student(rewards, values, gamma, lam)
        assert_shape(answer, (9,), "your advantages")
        right = gae(gamma, lam)
        wrong = {
            "you return the returns: subtract the values": right + values,
            "your advantage of a later action fades with λ alone: γλ": _without_gamma(
                rewards, values, gamma, lam
            ),
            "you walk from the first action to the last; what comes later counts": forward(
                gamma, lam
            ),
            "you stop at δ: add γλ times the next advantage": gae(gamma, 0.0),
            "your λ is left out (taken as 1)": gae(gamma, 1.0),
            "you forgot γ in front of the next value": gae(1.0, gamma * lam),
            "after the last action nothing is expected: its next value is 0": gae(
                gamma, lam, last_values=values[-1:]
            ),
            "δ adds the value before the action; subtract it": _added_value(
                rewards, values, gamma, lam
            ),
        }
        assert_close(
            answer,
            right,
            name=f"your advantages at gamma={gamma}, lam={lam}",
            mistakes={text: w for text, w in wrong.items() if not torch.allclose(w, right)},
        )
    assert_unchanged(lambda r, v: student(r, v, 0.9, 0.7), rewards, values, name="advantages")
    refuses(student, rewards, values, 1.0, 1.5, words="lam")
    refuses(student, rewards, values, 1.0, -0.1, words="lam")


def _recursion(delta: Tensor, factor: float) -> Tensor:
    found, carried = torch.zeros_like(delta), torch.zeros(())
    for t in reversed(range(len(delta))):
        found[t] = carried = delta[t] + factor * carried
    return found


def _without_gamma(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    later = torch.cat([values[1:], torch.zeros(1)])
    return _recursion(rewards + gamma * later - values, lam)


def _added_value(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    later = torch.cat([values[1:], torch.zeros(1)])
    return _recursion(rewards + gamma * later + values, gamma * lam)


def clipped_loss(student: Callable, *, seed: int = 0) -> None:
    """Value and gradient against the package's; ratios on both sides of the range."""
    random = torch.Generator().manual_seed(seed)
    new, old, gains = torch.randn(3, 3, 6, generator=random)
    new, old = 0.4 * new - 2, 0.4 * old - 2
    mask = torch.arange(6) < torch.tensor([[5], [2], [4]])
    ratio, clip = (new - old).exp(), 0.2
    each = ppo.clipped_surrogate(new, old, gains, clip)
    held = ratio.clamp(1 - clip, 1 + clip)
    answer = student(new, old, gains, mask, clip)
    assert_shape(answer, (), "your loss", {"average over the actions": (3, 6)})
    assert_close(
        answer,
        ppo.policy_loss(new, old, gains, mask, clip),
        name="your loss",
        mistakes={
            "your sign is turned round: a loss falls as good actions become likelier": (
                -each[mask].mean()
            ),
            "you take the larger of the two; the smaller promises less": (
                -torch.maximum(ratio * gains, held * gains)[mask].mean()
            ),
            "you always clip: a bad action that became likely could never come back": (
                -(held * gains)[mask].mean()
            ),
            "you never clip": -(ratio * gains)[mask].mean(),
            "your ratio is upside down: π over π_old": (
                ppo.clipped_surrogate(old, new, gains, clip)[mask].mean()
            ),
            "your ratio lacks the exponential": (
                -torch.minimum((new - old) * gains, (new - old).clamp(1 - clip, 1 + clip) * gains)[
                    mask
                ].mean()
            ),
            "you average over all positions; select with the mask first": each.mean(),
            "you divide by all positions; divide by the number of actions": (
                each.where(mask, 0.0).mean()
            ),
            "you average row by row: every action weighs the same": (
                masked_row_mean(each, mask).mean()
            ),
            "you add up; average over the actions": each[mask].sum(),
        },
    )

    def both(loss: Callable) -> Callable:
        return lambda new: loss(new, old, gains, mask, clip)

    assert_same_gradients(both(student), both(ppo.policy_loss), (new,), name="clipped_loss")
    strange = new.masked_fill(~mask, torch.nan)
    if not torch.isfinite(student(strange, old, gains, mask, clip)):
        raise AssertionError(
            "what the mask leaves out counts: select with the mask, do not multiply"
        )
    for place, name in ((1, "old_log_probs"), (2, "advantages")):
        parts = [new.clone().requires_grad_(), old.clone(), gains.clone()]
        parts[place].requires_grad_()
        student(*parts, mask, clip).backward()
        if parts[place].grad is not None and parts[place].grad.abs().max() > 0:
            raise AssertionError(f"{name} gets a gradient: detach it, it is a measurement")


def response_log_probs(student: Callable, *, seed: int = 0) -> None:
    """Ragged left-padded rows, one of them without any padding."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 9, 7, generator=random)
    tokens = torch.randint(7, (3, 9), generator=random)
    n_padding, prompt_lengths = torch.tensor([0, 4, 2]), torch.tensor([3, 2, 5])
    next_tokens, places = tokens[:, 1:], torch.arange(1, 9)
    found = token_log_probs(logits[:, :-1], next_tokens)

    def since(starts: Tensor, found: Tensor = found) -> Tensor:
        return found.where(places >= starts[:, None], 0.0)

    starts = n_padding + prompt_lengths
    answer = student(logits, tokens, prompt_lengths, n_padding)
    assert_shape(answer, (3, 8), "your log-probs", {"the first token has no log-prob": (3, 9)})
    same_place = token_log_probs(logits[:, 1:], next_tokens)
    raw = logits[:, :-1].gather(-1, next_tokens[..., None]).squeeze(-1)
    assert_close(
        answer,
        since(starts),
        name="your log-probs",
        mistakes={
            "the bug is still there: with padding on the left, the prompt ends later": since(
                prompt_lengths
            ),
            "you skip the padding and count the prompt": since(n_padding),
            "you lose the first token of every response": since(starts + 1),
            "the last token of the prompt is no part of the response": since(starts - 1),
            "position t scores token t + 1; you read token t there": since(starts, same_place),
            "these are logits: log_softmax them over the vocabulary": since(starts, raw),
            "these are probabilities: take their logarithm": since(starts, found.exp()),
            "you give the log-probs of the whole row": found,
            "your choice is upside down: you give the prompts' log-probs": found - since(starts),
        },
    )
    targets = torch.where(places >= starts[:, None], next_tokens, IGNORE)
    assert_same_gradients(
        lambda x: student(x, tokens, prompt_lengths, n_padding),
        lambda x: token_log_probs(x[:, :-1], targets),
        (logits,),
        name="response_log_probs",
    )


def hacked_from(student: Callable, hacked: str, choice: str, reason: str, *, seed: int = 0) -> None:
    """Curves that rise, fall by noise, fall with the proxy, or for good; the judgement."""
    noise = torch.randn(7, 25, generator=torch.Generator().manual_seed(seed))
    noise = (noise - noise.mean(1, keepdim=True)) / noise.std(1, keepdim=True)
    rising = torch.tensor([0.0, 0.5, 1.0, 1.4, 1.8, 2.1, 2.4])  # the proxy; a mean's error is 0.2
    cases = {
        "a falls from the best before it": ([0.5, 0.9, 1.4, 1.2, 0.8, 0.1, -0.5], rising, 4),
        "b only noise": ([0.5, 0.9, 1.4, 1.1, 1.3, 1.2, 1.1], rising, None),
        "c both fall": ([0.5, 1.4, 0.9, 0.5, 0.1, 0.1, 0.1], -rising, None),
        "e recovers": ([1.0, 0.9, 0.5, 1.5, 1.4, 1.5, 1.5], rising, 2),
        "d falls slowly": ([0.5, 1.4, 1.2, 1.1, 0.9, 0.6, 0.3], rising, 4),
        "f above the best's proxy, not above all": ([0.5, 1.4, 1.3, 0.6], rising[[0, 2, 4, 3]], 3),
        "g above the first's proxy only": ([0.5, 1.4, 1.3, 0.6], rising[[0, 4, 1, 3]], None),
    }
    for name, (means, proxy, right) in cases.items():
        judged = torch.tensor(means)[:, None] + noise[: len(means)]
        answer = student(proxy, judged)
        if answer != right:
            raise AssertionError(_why_not_hacked(name[0], answer, right))
        assert_type(answer, (int, type(None)), "your checkpoint")
    small = torch.tensor([[1.0, 1.0], [0.7, 0.91]])  # its error is 0.105, over K − 1
    if student(torch.tensor([0.0, 1.0]), small) is not None:
        raise AssertionError(
            "0.805 is less than two standard errors (0.105 each, over K − 1) below 1.0"
        )
    assert_equal(
        hacked,
        "C",
        name="hacked",
        mistakes={
            "D moved far, but people like it better than before training": "D",
            "B gained by the proxy and with people": "B",
        },
    )
    assert_equal(
        choice,
        "B",
        name="choice",
        mistakes={
            "people like B and D equally within ± 0.1, and B is nearer to the old policy": "D",
            "people like A clearly less than B": "A",
            "C has the highest proxy; people dislike it": "C",
        },
    )
    assert_equal(
        reason,
        "a",
        name="reason",
        mistakes={
            "(b): it ranks the old policy's own responses rather well": "b",
            "(c): the number 3 has nothing to do with it": "c",
        },
    )


def _why_not_hacked(case: str, answer: object, right: int | None) -> str:
    if case in "fg":
        return f"you say {answer}; compare the proxy with what it was at the best so far: {right}"
    if answer is None:
        return f"you find no hack; it begins at checkpoint {right}, below the best until then"
    return {
        "a": f"you say {answer}; a fall counts from two standard errors of the mean on ({right}): "
        "divide by √K, and compare with the best so far",
        "b": f"you say {answer}, but that fall is noise: within two standard errors",
        "c": f"you say {answer}, but there the proxy falls as well: that is a bad policy, no hack",
        "d": f"you say {answer}; compare with the best so far, not with the one before: {right}",
        "e": f"you say {answer}; only what came before counts, not the best of all: {right}",
    }[case]
