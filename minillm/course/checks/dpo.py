"""Checks for the exercises of lesson 23. Each names the mistake it recognises.

B pairs, T time, V vocabulary, N possible responses.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.align import dpo
from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)


def dpo_loss(student: Callable, *, seed: int = 0) -> None:
    """Value and gradients against the package's, and margins that overflow a careless sigmoid."""
    numbers = _log_probs(seed)
    chosen, rejected, ref_chosen, ref_rejected = numbers
    beta = 0.3
    answer = student(*numbers, beta)
    assert_shape(
        answer, (), "your loss", {"average over the pairs: the loss is one number": chosen.shape}
    )
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)

    def loss(x: Tensor) -> Tensor:
        return -F.logsigmoid(x).mean()

    assert_close(
        answer,
        dpo.dpo_loss(*numbers, beta=beta),
        name="your loss",
        mistakes={
            "your sign is turned round: this loss makes the rejected response likelier": loss(
                -beta * margin
            ),
            "you return log σ; the loss is −log σ": -loss(beta * margin),
            "you left out the reference: subtract it from both": loss(beta * (chosen - rejected)),
            "your references are swapped, or have the wrong sign: chosen − ref_chosen": loss(
                beta * ((chosen + ref_chosen) - (rejected + ref_rejected))
            ),
            "you left out β": loss(margin),
            "you divide by β; multiply": loss(margin / beta),
            "β stands outside of σ; it belongs inside": beta * loss(margin),
            "you return −σ; the loss is −log σ": -(beta * margin).sigmoid().mean(),
            "you take σ of the mean margin; the loss is the mean over the pairs": loss(
                beta * margin.mean()
            ),
            "you add the pairs up; take their mean": loss(beta * margin) * len(margin),
        },
    )
    assert_same_gradients(
        lambda c, r: student(c, r, ref_chosen, ref_rejected, beta),
        lambda c, r: dpo.dpo_loss(c, r, ref_chosen, ref_rejected, beta=beta),
        (chosen, rejected),
        name="dpo_loss",
    )
    leaves = [x.clone().requires_grad_() for x in numbers]
    student(*leaves, beta).backward()
    if any(x.grad is not None and x.grad.abs().max() > 0 for x in leaves[2:]):
        raise AssertionError("the reference gets a gradient: detach it, it has to stay")
    huge, zero = torch.tensor([4000.0]), torch.zeros(1)
    assert_close(
        student(-huge, huge, zero, zero, 1.0),
        8000.0,
        name="your loss at a margin of −8000",
        mistakes={"your σ overflows: use logsigmoid instead of sigmoid and log": math.inf},
    )
    refuses(student, *numbers, 0.0, words="beta")


def pair_weights(student: Callable, *, seed: int = 0) -> None:
    """The formula against what backward gives, pair by pair."""
    numbers = _log_probs(seed)
    chosen, rejected, ref_chosen, ref_rejected = numbers
    beta = 0.3
    leaf = chosen.clone().requires_grad_()
    loss = dpo.dpo_loss(leaf, rejected, ref_chosen, ref_rejected, beta=beta) * len(leaf)
    right = -torch.autograd.grad(loss, leaf)[0]
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    answer = student(*numbers, beta)
    assert_shape(answer, tuple(chosen.shape), "your weights")
    assert_close(
        answer,
        right,
        name="your weights",
        mistakes={
            "you give weight to what is already right: it is σ of minus the margin": (
                beta * margin.sigmoid()
            ),
            "you forgot the factor β that the chain rule brings": (-margin).sigmoid(),
            "you left β out of σ": beta * (-margin / beta).sigmoid(),
            "you left out β altogether": (-margin / beta).sigmoid(),
            "your weights are below 0: only their size is asked for": -right,
            "you left out the reference": beta * (-beta * (chosen - rejected)).sigmoid(),
            "this is the loss of every pair, not its weight": -F.logsigmoid(margin),
            "this is the derivative of σ, not that of log σ": (
                beta * margin.sigmoid() * (-margin).sigmoid()
            ),
            "you divide by the number of pairs; one pair's loss is asked for": right / len(right),
        },
    )
    leaf = chosen.clone().requires_grad_()
    if student(leaf, rejected, ref_chosen, ref_rejected, beta).requires_grad:
        raise AssertionError(
            "your weights carry a gradient: detach the margin, it is only a number"
        )
    refuses(student, *numbers, -1.0, words="beta")


def response_log_probs(student: Callable, *, seed: int = 0) -> None:
    """Ragged responses, a long one, a single token, and padding whose logits are −∞."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, 7, 5, generator=random)
    tokens = torch.randint(5, (3, 7), generator=random)
    prompts, ends = torch.tensor([2, 1, 4])[:, None], torch.tensor([5, 7, 5])[:, None]
    places = torch.arange(7)
    is_response = (places >= prompts) & (places < ends)

    scores = logits.log_softmax(-1)
    spoken = scores[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    own = scores.gather(-1, tokens[..., None]).squeeze(-1)
    shifted, early = is_response[:, 1:], is_response[:, :-1]
    right = (spoken * shifted).sum(-1)

    def averaged(mask: Tensor) -> Tensor:
        return (spoken * mask).sum(-1) / mask.sum(-1)

    answer = student(logits, tokens, is_response)
    assert_shape(answer, (3,), "your log-probs")
    assert_close(
        answer,
        right,
        name="your log-probs",
        mistakes={
            "both bugs are still there: the mean, and a mask that is one too early": averaged(
                early
            ),
            "you still average: the logarithm of a product is a sum": averaged(shifted),
            "your mask is still one too early: row t of `spoken` is about token t + 1": (
                spoken * early
            ).sum(-1),
            "you average over all positions, too": (spoken * shifted).mean(-1),
            "you count the prompt and the padding": spoken.sum(-1),
            "you score token t with position t, which has already seen it": (own * is_response).sum(
                -1
            ),
            "your response lacks its last token: the end token counts": (
                spoken * (shifted & is_response[:, 1:].roll(-1, 1))
            ).sum(-1),
        },
    )
    silent = logits.clone()
    silent[0, 5:] = -torch.inf  # row 0 is over at position 5
    assert_close(
        student(silent, tokens, is_response),
        right,
        name="your log-probs with padding of −∞",
        mistakes={
            "0 times −∞ is NaN: choose with `where` instead of multiplying by the mask": (
                lambda: torch.tensor([math.nan, *right[1:].tolist()])
            )
        },
    )
    assert_same_gradients(
        lambda x: student(x, tokens, is_response),
        lambda x: (
            x.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1) * shifted
        ).sum(-1),
        (logits,),
        name="response_log_probs",
    )


def best_policy(student: Callable, *, seed: int = 0) -> None:
    """The closed form, from a reference with a hole in it, and with rewards that overflow."""
    random = torch.Generator().manual_seed(seed)
    reference = torch.rand(6, generator=random)
    reference[2] = 0
    reference /= reference.sum()
    rewards = 2 * torch.randn(6, generator=random)
    rewards[2] = 5.0  # what the reference never says stays unsaid, however good
    beta = 0.4
    weights = reference * (rewards / beta).exp()

    def share(x: Tensor) -> Tensor:
        return x / x.sum()

    answer = student(reference, rewards, beta)
    assert_shape(answer, (6,), "your policy")
    assert_close(
        answer,
        share(weights),
        name="your policy",
        mistakes={
            "your probabilities do not add up to 1: divide by their sum": weights,
            "you left out the reference": (rewards / beta).softmax(-1),
            "you multiply the rewards by β; divide": share(reference * (rewards * beta).exp()),
            "you left out β": share(reference * rewards.exp()),
            "your sign is turned round: bad responses become likely": share(
                reference * (-rewards / beta).exp()
            ),
            "softmax takes logarithms: reference.log(), not the probabilities": (
                reference + rewards / beta
            ).softmax(-1),
            "β weighs the logarithm of the reference; it divides the rewards": (
                beta * reference.log() + rewards
            ).softmax(-1),
        },
    )
    assert_close(
        student(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([1000.0, 0.0, 0.0]), 1.0),
        torch.tensor([1.0, 0.0, 0.0]),
        name="your policy at a reward of 1000",
        mistakes={
            "exp(1000) overflows: add logarithms and use softmax": torch.tensor(
                [math.nan, 0.0, math.nan]
            ),
            "exp(1000) overflows; add logarithms and use softmax": torch.tensor(
                [math.nan, 0.0, 0.0]
            ),
        },
    )
    assert_unchanged(lambda p, r: student(p, r, beta), reference, rewards, name="best_policy")
    refuses(student, reference, rewards, 0.0, words="beta")


def choose_beta(student: Callable, choice: float, reason: str, *, seed: int = 0) -> None:
    """What `measure` finds on random responses, the β it speaks for, and why."""
    example = student(
        torch.tensor([0.5, 0.5]), torch.tensor([math.log(3), 0.0]), torch.tensor([1.0, 0.0]), [1.0]
    )
    assert_type(example, list, "your measurements")
    assert_close(example, [(0.130812, 0.75)], name="the example")
    random = torch.Generator().manual_seed(seed)
    reference = torch.rand(7, generator=random)
    reference[1] = 0
    reference /= reference.sum()
    learned, true = torch.randn(2, 7, generator=random)
    betas = [0.2, 1.0, 3.0]
    policies = [(reference.log() + learned / beta).softmax(-1) for beta in betas]
    assert_close(
        student(reference, learned, true, betas),
        [(_kl(p, reference), (p * true).sum().item()) for p in policies],
        name="your measurements",
        mistakes=_wrong_measurements(policies, reference, learned, true),
    )
    assert_close(
        float(choice),
        2.0,
        name="choice",
        mistakes={
            "0.5 has the highest learned reward; people see the true one": 0.5,
            "8 stays closest to the reference and hardly gets better": 8.0,
        },
    )
    assert_equal(
        reason,
        "b",
        name="reason",
        mistakes={
            "(a): nothing is trained here, and the policies are exact": "a",
            "(c): 8 has the smallest KL, and a lower true reward than 2": "c",
        },
    )


def _wrong_measurements(
    policies: Sequence[Tensor], reference: Tensor, learned: Tensor, true: Tensor
) -> dict[str, list[tuple[float, float]]]:
    truth = [(p * true).sum().item() for p in policies]
    kls = [_kl(p, reference) for p in policies]
    held = [p.clamp(min=1e-30) for p in policies]
    backwards = [_kl(reference, p) for p in held]
    return {
        "you report the learned reward; people see the true one": [
            (kl, (p * learned).sum().item()) for kl, p in zip(kls, policies, strict=True)
        ],
        "you maximise the true reward; the policy only knows the learned one": [
            (_kl(p, reference), (p * true).sum().item())
            for p in ((reference.log() + true / beta).softmax(-1) for beta in (0.2, 1.0, 3.0))
        ],
        "your KL is turned round: Σ π log(π / reference)": list(zip(backwards, truth, strict=True)),
        "0 · log 0 is NaN: use torch.xlogy, or leave out responses with probability 0": [
            (math.nan, reward) for reward in truth
        ],
        "your tuples are turned round: (kl, reward)": [
            (reward, kl) for kl, reward in zip(kls, truth, strict=True)
        ],
        "your KL has the wrong sign": [
            (-kl, reward) for kl, reward in zip(kls, truth, strict=True)
        ],
    }


def _kl(p: Tensor, q: Tensor) -> float:
    """KL(p ‖ q) in nats, with 0 log 0 = 0."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum().item()


def _log_probs(seed: int) -> Tensor:
    """(4, 5): policy chosen and rejected, reference chosen and rejected; no two ratios agree."""
    return -10 * torch.rand(4, 5, generator=torch.Generator().manual_seed(seed)) - 0.1
