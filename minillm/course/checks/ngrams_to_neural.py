"""Checks for the exercises of lesson 01. Each names the mistake it recognises.

B batch, T time, V vocabulary, C channels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)
from minillm.data import stories
from minillm.model.ngram import NGram


def safe_perplexity(
    student: Callable, *, shape: tuple[int, int, int] = (3, 5, 7), seed: int = 0
) -> None:
    """Against torch's cross-entropy; then with logits of ±1,000."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=generator)
    targets = torch.randint(shape[-1], shape[:2], generator=generator)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    over_time = -logits.log_softmax(1).gather(-1, targets[..., None])
    answer = student(logits.clone(), targets.clone())
    assert_type(answer, float, "the perplexity")
    assert_close(
        answer,
        losses.mean().exp().item(),
        name="the perplexity",
        mistakes={
            "you return the mean surprisal in nats; the perplexity is e to it": (
                losses.mean().item()
            ),
            "you average perplexities; average the surprisals first, then take e to the "
            "mean": losses.exp().mean().item(),
            "you take e to the sum of the surprisals; divide by the number of targets": lambda: (
                losses.sum().exp().item()
            ),
            "your softmax runs over time (dim=1), not over the vocabulary (dim=-1)": (
                over_time.mean().exp().item()
            ),
            "you use base 2 for the exponential and e for the logarithm; use the same base": (
                2 ** losses.mean().item()
            ),
            "your sign is wrong: surprisal is minus the logarithm": (-losses.mean()).exp().item(),
        },
    )
    # A gap of 1,000 overflows exp, and its probability underflows to 0.
    large = torch.tensor([[[1000.0, 999.0, -1000.0]]]).repeat(2, 2, 1)
    expected = (1 + torch.tensor(1.0).exp()).item()  # p of the second word is 1 / (1 + e)
    answer = student(large, torch.ones(2, 2, dtype=torch.long))
    if not torch.tensor(answer).isfinite():
        raise AssertionError(
            f"with logits of ±1,000 your perplexity is {answer}: exp overflows. Use log_softmax, "
            "or subtract the largest logit first"
        )
    assert_close(answer, expected, name="the perplexity with logits of ±1,000")
    answer = student(torch.tensor([[[0.0, 200.0]]]), torch.zeros(1, 1, dtype=torch.long))
    if torch.tensor(answer).isfinite() and answer < 1e30:
        raise AssertionError(
            f"a target that is e^200 times less likely has perplexity {answer:.3g} with your code; "
            "do not clip or pad probabilities before the logarithm"
        )
    refuses(student, torch.zeros(2, 3, 4), torch.zeros(3, 2, dtype=torch.long), words="shape")


def kneser_ney(student: Callable, *, discount: float = 0.7, seed: int = 0) -> None:
    """On counts with a frequent word that follows one word only, and a row never seen."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 4, (6, 6), generator=generator).float()
    counts[:, 2] = 0
    counts[1, 2] = 40  # "Francisco", seen only after word 1
    counts[4] = 0  # nothing ever followed word 4

    def reference(total_fallback=False, clamp=True, types=True, backoff=True):
        seen = (counts > 0).float()
        q = counts.sum(0) / counts.sum() if total_fallback else seen.sum(0) / seen.sum()
        total = counts.sum(1, keepdim=True)
        kept = counts - discount
        kept = kept.clamp(min=0) if clamp else kept
        freed = discount * (seen if types else torch.ones_like(seen)).sum(1, keepdim=True)
        p = (kept + freed * q * backoff) / total.clamp(min=1)
        return torch.where(total > 0, p, q)

    def unseen_row(value):
        wrong = reference()
        wrong[4] = value
        return wrong

    assert_unchanged(lambda c: student(c, discount), counts, name="kneser_ney")
    answer = student(counts.clone(), discount)
    assert_shape(answer, (6, 6), "the probabilities")
    assert_close(
        answer,
        reference(),
        name="the probabilities",
        mistakes={
            "you fall back on how often a word occurs; count after how many different words it "
            "occurs": reference(total_fallback=True),
            "a row that was never seen must be q, yours is NaN (0/0)": unseen_row(torch.nan),
            "a row that was never seen must be q, yours is 0": unseen_row(0.0),
            "some kept counts are negative: use max(count − d, 0)": reference(clamp=False),
            "your discount is taken V times from each row; count the words that were seen, "
            "N(h)": reference(types=False),
            "your rows do not sum to 1: give back what the discount took, d·N(h)/c(h) · q": (
                reference(backoff=False)
            ),
        },
    )
    for wrong in (0.0, 1.5):
        refuses(student, counts.clone(), wrong, words="discount")


def honest_perplexity(student: Callable, *, n_articles: int = 52, seed: int = 0) -> None:
    """Against the split of the text, and the ways in which test text can leak."""
    vocab_size = len(stories.vocabulary())
    articles = [[stories.END, *stories.encode(s.text)] for s in stories.stories(n_articles, seed)]
    fifth = n_articles // 5
    for article in articles[4 * fifth :]:  # other weights are best for these than for the rest
        article.sort()
    first, second = articles[: 3 * fifth], articles[3 * fifth : 4 * fifth]
    last = articles[4 * fifth :]

    def measured(counted, tuned, test):
        counted, tuned, test = ([i for a in part for i in a] for part in (counted, tuned, test))
        return NGram(2, vocab_size, add_k=0.001).fit(counted).tune(tuned).perplexity(test)

    answer = student([list(article) for article in articles], vocab_size)
    assert_type(answer, float, "the perplexity")
    assert_close(
        answer,
        measured(first, second, last),
        name="the perplexity",
        rtol=1e-6,
        atol=0.0,
        mistakes={
            "the test articles are still in the counts; then look at what chooses the weights": (
                lambda: measured(articles, second, last)
            ),
            "both leaks are still there: the test articles are in the counts and choose the "
            "weights": lambda: measured(articles, last, last),
            "the weights are still chosen on the test articles": lambda: measured(
                first, last, last
            ),
            "you choose the weights on the articles that were counted; there the highest order "
            "always wins": lambda: measured(first, first, last),
            "you measure on the articles that chose the weights": lambda: measured(
                first, second, second
            ),
            "you count the held-out articles as well": lambda: measured(
                first + second, second, last
            ),
            "you leave out the last articles when their number is no multiple of 5": lambda: (
                measured(first, second, articles[4 * fifth : 5 * fifth])
            ),
        },
    )
    refuses(student, articles[:4], vocab_size, words="article")


def nearest(
    student: Callable, *, shape: tuple[int, int] = (9, 4), k: int = 3, seed: int = 0
) -> None:
    """On vectors of very different lengths, for every word."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(shape, generator=generator)
    vectors *= torch.logspace(-1, 1, shape[0])[:, None]
    unit = F.normalize(vectors, dim=1)

    def ranked(scores, word, *, itself=False):
        order = scores.argsort(descending=True).tolist()
        return [i for i in order if itself or i != word][:k]

    answers, right, wrong = [], [], {}
    assert_unchanged(lambda v: student(v, 0, k), vectors, name="nearest")
    for word in range(shape[0]):
        answer = student(vectors.clone(), word, k)
        assert_type(answer, list, "the result of nearest")
        answers.append(answer)
        cosine = unit @ unit[word]
        right.append(ranked(cosine, word))
        distance = (vectors - vectors[word]).norm(dim=1)
        for message, ids in {
            "the word itself is among its neighbours": ranked(cosine, word, itself=True),
            "you compare dot products; divide by the lengths of both vectors": ranked(
                vectors @ vectors[word], word
            ),
            "you compare dot products, and the word itself is among its neighbours": ranked(
                vectors @ vectors[word], word, itself=True
            ),
            "the least similar words come first": ranked(-cosine, word),
            "you compare distances, not directions": ranked(-distance, word),
        }.items():
            wrong.setdefault(message, []).append(ids)
    assert_equal(answers, right, name="the list of neighbours of all words", mistakes=wrong)
    for bad in (0, shape[0]):
        refuses(student, vectors.clone(), 0, bad, words="k")


def advise(
    student: Callable, *, seed: int = 40, sizes: tuple[int, ...] = (1000, 10_000, 200_000)
) -> None:
    """New stories: the advised order is at most 10% worse than the best of the four."""
    vocab_size = len(stories.vocabulary())

    def line(n_words, seed):
        drawn = stories.stories(n_words // 40 + 1, seed)
        return [i for story in drawn for i in [stories.END, *stories.encode(story.text)]][:n_words]

    advised = {n: student(n) for n in sizes}
    for order in advised.values():
        assert_type(order, int, "the order")
        if order not in (1, 2, 3, 4):
            raise AssertionError(f"the order is {order}; expected 1, 2, 3 or 4")
    text, test = line(max(sizes), seed), line(4000, seed + 1)
    for n, order in advised.items():
        found = {
            m: NGram(m, vocab_size, add_k=0.01).fit(text[:n]).perplexity(test) for m in (1, 2, 3, 4)
        }
        best = min(found, key=found.get)
        if found[order] > 1.1 * found[best]:
            why = (
                "its contexts are too rare to have been counted often enough"
                if order > best
                else "there is enough text to use more context"
            )
            raise AssertionError(
                f"with {n} words, order {order} has perplexity {found[order]:.1f}, but order "
                f"{best} has {found[best]:.1f}: {why}"
            )
    refuses(student, 0, words="word")
