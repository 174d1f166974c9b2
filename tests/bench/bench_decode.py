"""Decoding SmolLM2 in fp32, greedy, batch 1 and 8: ours beside `transformers` generate.

Runs alternate, so that a busy machine slows both alike, and both must give the same tokens. One
step has to read every weight once, so the machine's memory bandwidth limits steps per second;
the bandwidth is measured here too, by summing as many bytes. Then the same with weights in 8 and 4
bits, beside our own fp32: the plain model, and the copy laid out for decoding.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from turns import in_turns

from minillm.infer.engine import generate
from minillm.infer.packed import packed
from minillm.infer.sampling import Sampler
from minillm.infer.weight_only import weight_only
from minillm.model import hf
from minillm.model.transformer import Transformer

PROMPT = "Gravity is the force by which a planet draws objects toward its centre. The word"
N_NEW = 48


def as_transformers(model: Transformer):
    """The same weights in the library's Llama class."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        hf.to_huggingface(model, Path(folder) / "model", "llama")
        return AutoModelForCausalLM.from_pretrained(Path(folder) / "model").eval()


def greedy_run(model: Transformer, prompts: list[list[int]]) -> Callable:
    """A function that generates greedily and returns the new tokens."""
    greedy = Sampler(temperature=0)
    return lambda: generate(model, prompts, max_new_tokens=N_NEW, sampler=greedy)


def contestants(ours, theirs, prompts: list[list[int]]) -> dict:
    """The same greedy generation by both, each returning the new tokens."""
    tokens = torch.tensor(prompts)
    settings = {"max_new_tokens": N_NEW, "do_sample": False, "pad_token_id": 0}
    settings["attention_mask"] = torch.ones_like(tokens)
    return {
        "ours": greedy_run(ours, prompts),
        "theirs": lambda: theirs.generate(tokens, **settings)[:, tokens.shape[1] :].tolist(),
    }


def bytes_per_second(n_bytes: int) -> float:
    """How fast this machine reads memory, in the threads PyTorch may use: the best of several."""
    numbers = torch.ones(n_bytes // 4)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - started)
    return n_bytes / min(seconds)


def few_bits(model: Transformer, prompt: list[int]) -> None:
    """Weight-only decoding at batch 1 beside the same model in fp32."""
    models = {
        "plain fp32": model, "packed fp32": packed(model),
        "int8": weight_only(model), "int4": weight_only(model, bits=4),
    }  # fmt: skip
    seconds, _ = in_turns({name: greedy_run(m, [prompt]) for name, m in models.items()})
    for name in ("int8", "int4"):
        times = ", ".join(f"{seconds[k] / seconds[name]:.2f}x {k}" for k in list(models)[:2])
        bar = " (bar 2.5x plain)" if name == "int8" else ""
        print(f"  {name} weights: {N_NEW / seconds[name]:.1f} tokens/s, {times}{bar}")


def main() -> None:
    model, tokenizer = hf.smollm2()
    prompt = tokenizer.encode(PROMPT)
    few_bits(model, prompt)
    ours, theirs = packed(model), as_transformers(model)
    n_bytes = 4 * model.n_parameters()
    print(f"decode SmolLM2 fp32, {torch.get_num_threads()} thread(s), {N_NEW} new tokens")
    for batch_size in (1, 8):
        runs = contestants(ours, theirs, [prompt] * batch_size)
        seconds, results = in_turns(runs, rounds=15)  # memory that others use too is unsteady
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
