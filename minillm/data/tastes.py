"""A reader with a taste: which continuations of a story are good, known exactly.

Methods that learn from preferences can only be judged where the truth is known. So here the truth
is a plain function that a person could have in mind: `true_reward` counts what a friendly reader
enjoys. The methods never see it. They see which of two texts the reader prefers, with mistakes
(`align.reward.simulated_preferences`), and whatever they make of that can be held against it.

A model continues a `beginnings` for a few words; no story needs to end.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.data import stories

# In most places of the grammar some words are liked, some disliked, and the others are neither.
_LIKED = """
    red yellow pink golden orange tiny round light soft smooth
    brave clever kind gentle polite friendly wise funny
    softly gladly kindly gently bravely calmly quietly
    school library castle museum theater fair zoo playground camp lake fountain waterfall beach
    sunny playful
"""
_DISLIKED = """
    brown black grey huge flat long heavy
    silly lazy proud noisy hungry tired
    loudly slowly
    barn attic cellar hospital airport gate station well canal
    rainy windy foggy stormy cloudy icy misty
    starving famished cold freezing shivering bored restless sleepless homesick
"""
LIKED, DISLIKED = frozenset(_LIKED.split()), frozenset(_DISLIKED.split())
_WORD = re.compile("[a-z]+")


def true_reward(text: str) -> float:
    """How much the reader enjoys a text.

    A liked word counts 1, but only once: said again it costs 1. A disliked word costs 1 each time.
    And stuttering costs 1: a word that stands among the three before it.

    >>> true_reward("The kind lamb sang."), true_reward("Sad? Cold."), true_reward("No, no, no.")
    (1.0, -1.0, -2.0)
    """
    said = _WORD.findall(text.lower())
    liked = [word for word in said if word in LIKED]
    disliked = [word for word in said if word in DISLIKED]
    stutters = [word for i, word in enumerate(said) if word in said[max(0, i - 3) : i]]
    again = len(liked) - len(set(liked))
    return float(len(set(liked)) - again - len(disliked) - len(stutters))


def true_rewards(responses: Sequence[Sequence[int]]) -> Tensor:
    """`true_reward` of token ids, such as the responses of a `Rollout`: (B,) float, on the CPU."""
    return torch.tensor([true_reward(stories.decode(response)) for response in responses])


def beginnings(
    n: int, seed: int | torch.Generator | None = None, length: int = 8
) -> list[list[int]]:
    """Prompts: END, where every story starts, and the first `length` tokens of n new stories.

    Args:
        n: how many, at least 0.
        seed: a number gives the same ones each time; a generator is drawn from.
        length: at least 1 and at most 32, fewer than any story has.

    Raises:
        ValueError: n or length out of range.
    """
    if n < 0 or not 1 <= length <= 32:
        raise ValueError(f"n={n}, length={length}: expected n of at least 0 and length of 1 to 32")
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    texts = [stories.sample_story(generator).text for _ in range(n)]
    return [[stories.END, *stories.encode(text)[:length]] for text in texts]
