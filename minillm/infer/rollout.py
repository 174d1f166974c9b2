"""Samples of a policy, with everything that learning from them needs.

One convention, that of `data.packing.Batch`, holds for all of `align`: a batch holds the *whole*
text, prompt and response, and position t answers for the token that comes *after* token t. What
the policy itself chose, an action, is a target; everything else (prompt, padding, the last
position) is IGNORE. The token that ends the response is an action like the others: a policy whose
end token were left out could never learn when to stop.

    tokens     p0  p1  p2  r0  r1 end  pad
    targets     ·   ·  r0  r1 end   ·    ·

Shapes: P prompts, B rows (P times samples), T time, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minillm.data.packing import IGNORE, Batch
from minillm.infer.engine import check_prompts, steps
from minillm.infer.sampling import Sampler
from minillm.model.transformer import Transformer


@dataclass(frozen=True)
class Rollout:
    """What a policy did with some prompts.

    Attributes:
        batch: tokens and targets (B, T) int64; the targets that are not IGNORE are the actions.
        log_probs: (B, T) float32, of each action under the policy that sampled it; 0 elsewhere.
        responses: the B responses as token ids, without the token that ended them.
        finished: (B,) bool, False where `max_new_tokens` cut the response off.
    """

    batch: Batch
    log_probs: Tensor
    responses: list[list[int]]
    finished: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, T) bool: True where there is an action."""
        return self.batch.targets != IGNORE

    @property
    def actions(self) -> list[list[int]]:
        """The B responses as token ids, with the token that ended them."""
        return [row[row != IGNORE].tolist() for row in self.batch.targets.cpu()]


def rollout(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int],
    n_samples: int = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Let the model answer every prompt `n_samples` times, and note how likely each token was.

    There is no top-k or top-p: the tokens they rule out have probability zero under the policy
    that samples, but not under the one that is trained, so their ratio would be wrong. With a
    temperature the policy is softmax(logits / temperature): give `align.logprobs` the same one.

    Args:
        model: the policy; no gradients are kept.
        prompts: P prompts, lengths may differ. Each is read once, however many samples it gets.
        max_new_tokens: most actions of a response, the one that ends it included.
        stop_tokens: ids that end a response.
        n_samples: row i · n_samples + j is sample j of prompt i.
        temperature: above 0.
        generator: where the rows' seeds come from, as for `engine.generate`.

    Raises:
        ValueError: no prompts, a prompt or length the model cannot take, or a temperature or
            number of samples that makes no sense.
    """
    if not prompts or n_samples < 1:
        raise ValueError(f"{len(prompts)} prompts, n_samples={n_samples}: expected at least 1 each")
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature={temperature}: expected a number above 0; greedy choices have no "
            "log-probability to learn from"
        )
    check_prompts(model, prompts, max_new_tokens)
    chosen = steps(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_tokens=stop_tokens,
        sampler=Sampler(temperature=temperature),
        generator=generator,
        n_samples=n_samples,
    )
    rows, columns, tokens, scores = [], [], [], []
    for i, step in enumerate(chosen):
        known = (step.logits.float() / temperature).log_softmax(-1)
        scores.append(known.gather(-1, step.tokens[:, None]).squeeze(-1))
        tokens.append(step.tokens)
        rows += step.rows
        columns += [i] * len(step.rows)

    # From steps to rows: (B, actions of the longest row).
    places = tuple(torch.from_numpy(np.array([rows, columns], dtype=np.int64)).to(model.device))
    actions = torch.full((len(prompts) * n_samples, columns[-1] + 1), IGNORE, device=model.device)
    actions[places] = torch.cat(tokens)
    log_probs = torch.zeros(actions.shape, device=model.device)
    log_probs[places] = torch.cat(scores)
    taken = actions != IGNORE

    said = [row[:n] for row, n in zip(actions.tolist(), taken.sum(1).tolist(), strict=True)]
    prompts = [prompt for prompt in prompts for _ in range(n_samples)]
    batch = response_batch(prompts, said).to(model.device)
    placed = torch.zeros(batch.tokens.shape, device=model.device)
    placed[batch.targets != IGNORE] = log_probs[taken]  # both run row by row, in order
    finished = torch.tensor([row[-1] in stop_tokens for row in said], device=model.device)
    responses = [row[:-1] if row[-1] in stop_tokens else row for row in said]
    return Rollout(batch, placed, responses, finished)


def response_batch(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Batch:
    """Prompts and their responses as one batch whose targets are exactly the responses.

    Args:
        prompts, responses: as many of one as of the other, each at least one token. A response
            that should teach when to stop ends with the end token.

    Returns:
        tokens and targets (B, T), whole texts, padded on the right with token 0 and IGNORE.

    Raises:
        ValueError: different numbers of prompts and responses, or an empty one.

    Example: ``response_batch([[5, 6]], [[7, 1]])`` has tokens [[5, 6, 7, 1]] and targets
    [[IGNORE, 7, 1, IGNORE]].
    """
    if len(prompts) != len(responses) or not prompts:
        raise ValueError(
            f"{len(prompts)} prompts and {len(responses)} responses: expected one response to "
            "each, and at least one"
        )
    T = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    tokens, targets = [], []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not len(prompt) or not len(response):
            raise ValueError(f"row {row}: prompt and response need at least one token each")
        n_padding = T - len(prompt) - len(response)
        tokens.append([*prompt, *response, *[0] * n_padding])
        # The last token of the prompt is what the first of the response comes after.
        given = [IGNORE] * (len(prompt) - 1)
        targets.append([*given, *response, *[IGNORE] * (n_padding + 1)])
    # NumPy takes lists of numbers in a fraction of PyTorch's time.
    return Batch(*(torch.from_numpy(np.array(rows, dtype=np.int64)) for rows in (tokens, targets)))
