"""A made-up world of facts, told as often as Zipf's law says: for experiments on scale.

A fact is three words, "subject relation object", where any two have one right third. The fact of
rank k is told with probability proportional to k^-exponent: a few all the time, most of them hardly
ever. A model that knows more facts predicts the third word better, and there are always rarer ones
left to learn, which is one explanation of why losses fall as power laws (Michaud et al. 2023, "The
Quantization Model of Neural Scaling"). A share of the objects is drawn at random instead: a floor
that no model can beat, known exactly.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from minillm.data.packing import IGNORE, Batch


@dataclass(frozen=True)
class World:
    """`n_words`² facts. The seed decides which objects are right, and which facts are famous.

    Raises:
        ValueError: fewer than two words, an exponent that is not positive, noise outside [0, 1).
    """

    n_words: int = 64
    exponent: float = 1.4
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self):
        if self.n_words < 2:
            raise ValueError(f"n_words={self.n_words}: expected at least 2")
        if not self.exponent > 0:
            raise ValueError(f"exponent={self.exponent}: expected above 0")
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise={self.noise}: expected a share, at least 0 and below 1")

    @property
    def n_facts(self) -> int:
        return self.n_words**2

    @cached_property
    def probabilities(self) -> Tensor:
        """(n_facts,) float64: how often the fact of each rank is told, the most famous first."""
        weights = torch.arange(1, self.n_facts + 1, dtype=torch.float64) ** -self.exponent
        return weights / weights.sum()

    @cached_property
    def _facts(self) -> tuple[Tensor, Tensor]:
        """(n_facts,) which pair of words has each rank, and (n_facts,) the object of each pair."""
        generator = torch.Generator().manual_seed(self.seed)
        ranks = torch.randperm(self.n_facts, generator=generator)
        return ranks, torch.randint(self.n_words, (self.n_facts,), generator=generator)

    @property
    def objects(self) -> Tensor:
        """(n_facts,) int64: the right third word of the pair subject · n_words + relation."""
        return self._facts[1]

    @property
    def pairs(self) -> Tensor:
        """(n_facts,) int64: the pair that has each rank, the most famous first."""
        return self._facts[0]

    @property
    def entropy(self) -> float:
        """Nats per object that nobody can predict: the floor of every loss."""
        right = 1 - self.noise + self.noise / self.n_words
        wrong = self.noise / self.n_words  # each of the other words
        others = (self.n_words - 1) * wrong * math.log(wrong) if wrong else 0.0
        return -right * math.log(right) - others

    def sample(self, n: int, generator: torch.Generator | None = None) -> Batch:
        """n told facts: tokens (n, 2) are subject and relation; only the object is a target."""
        # Inverting the cumulative sum is many times faster than torch.multinomial here.
        uniforms = torch.rand(n, generator=generator, dtype=torch.float64)
        ranks = torch.searchsorted(self._cumulative, uniforms).clamp(max=self.n_facts - 1)
        pairs = self.pairs[ranks]
        noisy = torch.rand(n, generator=generator) < self.noise
        random = torch.randint(self.n_words, (n,), generator=generator)
        objects = torch.where(noisy, random, self.objects[pairs])
        targets = torch.stack([torch.full_like(objects, IGNORE), objects], dim=1)
        return Batch(self.questions[pairs], targets)

    @cached_property
    def _cumulative(self) -> Tensor:
        return self.probabilities.cumsum(0)

    def expected_loss(self, logits: Tensor) -> float:
        """Mean nats over all the facts this world would ever tell, not over a sample of them.

        Args:
            logits: (n_facts, n_words), scores of the objects for the pairs in order, `questions`.
        """
        logs = logits.double().log_softmax(-1).cpu()  # (n_facts, n_words)
        right = logs.gather(1, self.objects[:, None])[:, 0]
        loss = -(1 - self.noise) * right - self.noise * logs.mean(-1)  # (n_facts,)
        return float(loss[self.pairs] @ self.probabilities)

    @cached_property
    def questions(self) -> Tensor:
        """(n_facts, 2) int64: every pair of words, in order."""
        pairs = torch.arange(self.n_facts)
        return torch.stack([pairs // self.n_words, pairs % self.n_words], dim=1)
