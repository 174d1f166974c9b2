"""Serving SmolLM2: many requests in 8 bits beside one in fp32, and speculation beside plain.

Only decoding is timed, with all requests running, in turns, so that a busy machine slows all
alike. A step reads every weight once, however many requests it serves: 540 MB in fp32, a quarter
of that in 8 bits. Speculation looks its guesses up in a prompt that the answer repeats.
"""

from collections.abc import Callable

import torch
from turns import in_turns

from minillm.adapt.quant_cache import Int8Pool
from minillm.infer.drafters import PromptLookup
from minillm.infer.engine import generate
from minillm.infer.packed import packed
from minillm.infer.paged import BLOCK_SIZE, BlockPool
from minillm.infer.sampling import Sampler
from minillm.infer.scheduler import Request, Scheduler
from minillm.infer.speculative import speculate
from minillm.infer.weight_only import weight_only
from minillm.model import hf
from minillm.model.transformer import Transformer

PROMPT = "{} planets draw objects toward their centres by the force of gravity. The word"
SOURCE = (
    "The old mill stands by the river. Every morning the miller opens the sluice and the wheel "
    "begins to turn. The stones grind the grain, and the flour falls into white sacks. In the "
    "evening he closes the sluice and counts the sacks."
)
GREEDY = Sampler(temperature=0)
ROUNDS = 5
N_STEPS = 12  # decoding steps between two looks at the clock
BATCHES = (8, 32, 64)


def decoder(
    model: Transformer, prompts: list[list[int]], pool_type: type[BlockPool] = BlockPool
) -> Callable[[], None]:
    """A function that gives each prompt N_STEPS more tokens; its first call reads the prompts."""
    n_new = (ROUNDS + 1) * N_STEPS + 1  # so that nobody ends in between
    blocks_of_one = -(-(max(map(len, prompts)) + n_new) // BLOCK_SIZE)
    scheduler = Scheduler(
        model,
        n_blocks=len(prompts) * (blocks_of_one + 1),
        max_batch=len(prompts),
        max_waiting=len(prompts),
        pool_type=pool_type,
    )
    for prompt in prompts:
        scheduler.add(Request(prompt, n_new, sampler=GREEDY))

    def run() -> None:
        for _ in range(N_STEPS):
            assert len(scheduler.step()) == len(prompts)

    return run


def batching(model: Transformer, prompts: list[list[int]]) -> None:
    """Tokens a second of all requests together, beside a single one in fp32."""
    int8 = weight_only(model)
    runs = {"fp32, batch 1": (1, decoder(model, prompts[:1]))}
    for B in BATCHES:
        runs[f"int8 weights and cache, batch {B}"] = B, decoder(int8, prompts[:B], Int8Pool)
    fastest, B = packed(model), BATCHES[-1]
    runs[f"packed fp32, int8 cache, batch {B}"] = B, decoder(fastest, prompts[:B], Int8Pool)
    seconds, _ = in_turns({name: run for name, (_, run) in runs.items()}, ROUNDS)
    rates = {name: B * N_STEPS / seconds[name] for name, (B, _) in runs.items()}
    for name, rate in rates.items():
        print(f"  {name}: {rate:.0f} tokens/s, {rate / rates['fp32, batch 1']:.1f}x")
    in_int8 = max(rate for name, rate in rates.items() if name.startswith("int8"))
    print(f"  int8 and batching: {in_int8 / rates['fp32, batch 1']:.1f}x fp32 at batch 1 (bar 8)")


def speculation(model: Transformer, prompt: list[int], n_new: int) -> None:
    """Greedy decoding of one request with and without guesses: the same text."""
    settings = {"max_new_tokens": n_new, "sampler": GREEDY}
    seconds, results = in_turns({
        "plain": lambda: generate(model, [prompt], **settings)[0],
        "guessed": lambda: speculate(model, prompt, PromptLookup(), n_drafts=7, **settings),
    })  # fmt: skip
    assert results["plain"] == results["guessed"], "guessing changed the text"
    print(
        f"  speculation by prompt look-up: {n_new / seconds['guessed']:.1f} tokens/s, "
        f"{seconds['plain'] / seconds['guessed']:.2f}x plain (bar 1.5)"
    )


def main() -> None:
    model, tokenizer = hf.smollm2()
    print(f"serve SmolLM2, {torch.get_num_threads()} thread(s)")
    batching(model, [tokenizer.encode(PROMPT.format(i)) for i in range(BATCHES[-1])])
    # Twice the text and its beginning: what comes next is in the prompt.
    source = tokenizer.encode(SOURCE + "\n\n")
    speculation(packed(model), source + source + source[:6], len(source) - 12)


if __name__ == "__main__":
    main()
