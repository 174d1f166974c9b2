"""Rollouts of a lesson's model, batch 256 with ragged stops: ours beside `transformers` generate.

Ours returns the log-probs of the sampling policy as well; theirs returns the tokens only. Both draw
from the same distribution, not the same tokens, so the measure is tokens a second, end tokens
included. Runs alternate, so that a busy machine slows both alike. Then one step of GRPO is timed in
its three parts.
"""

import time

import torch
from bench_decode import as_transformers
from turns import in_turns

from minillm.align.advantages import group_advantages
from minillm.align.grpo import grpo_loss
from minillm.align.logprobs import log_probs
from minillm.infer.rollout import rollout
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer

N_PROMPTS, N_SAMPLES, N_NEW, VOCAB, END = 16, 16, 80, 16, 1
ROUNDS = 5


def lesson_model() -> Transformer:
    """Two layers of width 64, as the reasoning lessons train."""
    config = llama_config(VOCAB, d_model=64, n_layers=2, n_heads=4, max_length=96)
    return Transformer(config, torch.Generator().manual_seed(0)).eval()


def contestants(model: Transformer, prompts: list[list[int]]) -> dict:
    """Sampling by both; each returns how many tokens it sampled."""
    theirs = as_transformers(model)
    generator = torch.Generator().manual_seed(0)
    every = [prompt for prompt in prompts for _ in range(N_SAMPLES)]
    longest = max(map(len, every))
    tokens = torch.tensor([[0] * (longest - len(p)) + p for p in every])  # they pad on the left
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in every])
    settings = {"max_new_tokens": N_NEW, "do_sample": True, "top_k": 0, "eos_token_id": END}
    settings |= {"pad_token_id": 0, "attention_mask": mask}

    def ours() -> int:
        return int(sample(model, prompts, generator).mask.sum())

    def library() -> int:
        new = theirs.generate(tokens, **settings)[:, longest:]
        ended = (new == END).int()
        return int((ended.cumsum(1) - ended == 0).sum())

    return {"ours": ours, "theirs": library}


def sample(model: Transformer, prompts: list[list[int]], generator: torch.Generator):
    return rollout(
        model,
        prompts,
        max_new_tokens=N_NEW,
        stop_tokens=[END],
        n_samples=N_SAMPLES,
        generator=generator,
    )


def grpo_step_seconds(model: Transformer, prompts: list[list[int]]) -> dict[str, float]:
    """Fastest of several steps: seconds to sample, to score and to learn."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(0)
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        times = [time.perf_counter()]
        found = sample(model, prompts, generator)
        times.append(time.perf_counter())
        rewards = torch.tensor([float(sum(row) % 10 == 3) for row in found.responses])
        advantages = group_advantages(rewards.view(-1, N_SAMPLES)).flatten()
        times.append(time.perf_counter())
        optimizer.zero_grad()
        new = log_probs(model, found.batch)
        grpo_loss(new, found.log_probs, advantages, found.mask).backward()
        optimizer.step()
        times.append(time.perf_counter())
        parts = ("sample", "score", "learn")
        seconds = {p: times[i + 1] - times[i] for i, p in enumerate(parts)}
        if not best or sum(seconds.values()) < sum(best.values()):
            best = seconds
    return best


def main() -> None:
    torch.manual_seed(0)  # the library draws from the global generator
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(6, 13, (N_PROMPTS,), generator=generator).tolist()
    prompts = [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    model = lesson_model()
    seconds, n_tokens = in_turns(contestants(model, prompts))
    speed = {name: n_tokens[name] / seconds[name] for name in seconds}
    print(
        f"rollouts of a 2-layer model, batch {N_PROMPTS * N_SAMPLES}, ragged stops: "
        f"{speed['ours']:,.0f} tokens/s, "
        f"{speed['ours'] / speed['theirs']:.2f}x transformers (bar 3)"
    )
    parts = grpo_step_seconds(model, prompts)
    total = sum(parts.values())
    shares = ", ".join(f"{name} {t / total:.0%}" for name, t in parts.items())
    print(f"  one GRPO step {1000 * total:.0f} ms: {shares} (bar: sample at most 60%)")


if __name__ == "__main__":
    main()
