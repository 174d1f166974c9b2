"""Decoding SmolLM2 in fp32, greedy, batch 1 and 8: ours beside `transformers` generate.

Runs alternate, so that a busy machine slows both alike, and both must give the same tokens. One
step has to read every weight once, so the machine's memory bandwidth limits steps per second;
the bandwidth is measured here too, by summing as many bytes.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from minillm.infer.engine import generate
from minillm.infer.packed import packed
from minillm.infer.sampling import Sampler
from minillm.model import hf
from minillm.model.transformer import Transformer

PROMPT = "Gravity is the force by which a planet draws objects toward its centre. The word"
N_NEW = 48
ROUNDS = 5


def as_transformers(model: Transformer):
    """The same weights in the library's Llama class."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        hf.to_huggingface(model, Path(folder) / "model", "llama")
        return AutoModelForCausalLM.from_pretrained(Path(folder) / "model").eval()


def contestants(ours, theirs, prompts: list[list[int]]) -> dict:
    """The same greedy generation by both, each returning the new tokens."""
    tokens = torch.tensor(prompts)
    settings = {"max_new_tokens": N_NEW, "do_sample": False, "pad_token_id": 0}
    settings["attention_mask"] = torch.ones_like(tokens)
    greedy = Sampler(temperature=0)
    return {
        "ours": lambda: generate(ours, prompts, max_new_tokens=N_NEW, sampler=greedy),
        "theirs": lambda: theirs.generate(tokens, **settings)[:, tokens.shape[1] :].tolist(),
    }


def measure(contestants: dict) -> tuple[dict[str, float], dict[str, list]]:
    """Median seconds of each, taken in turns, and what each returned; the first round warms up."""
    seconds = {name: [] for name in contestants}
    results = {}
    for round_ in range(ROUNDS + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            results[name] = run()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(s) for name, s in seconds.items()}, results


def bytes_per_second(n_bytes: int) -> float:
    """How fast this machine reads memory, in the threads PyTorch may use: the best of several."""
    numbers = torch.ones(n_bytes // 4)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - started)
    return n_bytes / min(seconds)


def main() -> None:
    model, tokenizer = hf.smollm2()
    ours, theirs = packed(model), as_transformers(model)
    prompt = tokenizer.encode(PROMPT)
    n_bytes = 4 * model.n_parameters()
    print(f"decode SmolLM2 fp32, {torch.get_num_threads()} thread(s), {N_NEW} new tokens")
    for batch_size in (1, 8):
        seconds, results = measure(contestants(ours, theirs, [prompt] * batch_size))
        assert results["ours"] == results["theirs"], "the two do not decode the same tokens"
        bandwidth = bytes_per_second(n_bytes)
        reached = N_NEW * n_bytes / seconds["ours"]
        print(
            f"  batch {batch_size}: {batch_size * N_NEW / seconds['ours']:.1f} tokens/s, "
            f"{seconds['theirs'] / seconds['ours']:.2f}x transformers (bar 1.3), "
            f"{reached / bandwidth:.0%} of {bandwidth / 1e9:.1f} GB/s measured bandwidth"
        )


if __name__ == "__main__":
    main()
