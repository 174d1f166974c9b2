"""Checks for the exercises of lesson 17. Each names the mistake it recognises.

B batch, T time, V vocabulary.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F

from minillm.adapt import self_instruct
from minillm.adapt.sft import encode_chat
from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_shape,
    assert_type,
    refuses,
)
from minillm.data.instructions import SINGLES, sample_conversation, tasks
from minillm.data.packing import IGNORE
from minillm.data.word_tokenizer import WordTokenizer
from minillm.infer.chat import CHATML


def _talk(seed: int) -> list[tuple[str, str]]:
    random = torch.Generator().manual_seed(seed)
    return sample_conversation(("reverse", "drop_first", "plural"), random)


def conversation_ids(student: Callable, *, seed: int = 0) -> None:
    """A conversation of several turns, with and without the system's, against the package."""
    tokenizer = WordTokenizer()
    start, end = (tokenizer.special_tokens[m] for m in ("<|im_start|>", "<|im_end|>"))
    talk = [("system", "use the plural."), *_talk(seed)[:5]]
    newline = tokenizer.encode("\n")
    for messages in (talk[1:2], talk):
        right = CHATML.encode(tokenizer, messages)
        without_answer = CHATML.encode(tokenizer, messages, answer=False)
        no_line_end = [t for r, c in messages for t in (start, *tokenizer.encode(f"{r}\n{c}"), end)]
        opening = [start, *tokenizer.encode("assistant\n")]
        assert_equal(
            student(messages, tokenizer.encode, start, end),
            right,
            name="your conversation",
            mistakes={
                "you do not open the assistant's turn: the model would first write its own "
                "marker": without_answer,
                "you closed the turn that the assistant is about to write": [
                    *without_answer,
                    *opening,
                    end,
                    *newline,
                ],
                "a line end is missing after <|im_end|>": no_line_end + opening,
                "a line end is missing after the role": [t for t in right if t != newline[0]],
                "you left out the role": [
                    t
                    for role, content in messages
                    for t in (start, *tokenizer.encode(content), end, *newline)
                ]
                + [start],
            },
        )
    refuses(student, [("king", "dog")], tokenizer.encode, start, end, words="king")


def answer_targets(student: Callable, *, seed: int = 0) -> None:
    """Three turns, answers of different lengths, against the package's example."""
    tokenizer = WordTokenizer()
    talk = _talk(seed)
    end = tokenizer.special_tokens["<|im_end|>"]
    turns = [
        (
            role,
            CHATML.opening(tokenizer, role),
            tokenizer.encode(content),
            CHATML.closing(tokenizer),
        )
        for role, content in talk
    ]
    right = encode_chat(talk, CHATML, tokenizer)
    answer = student(turns)
    assert_type(answer, tuple, "your result")
    tokens, targets = answer
    line = [t for _, *parts in turns for part in parts for t in part]
    assert_equal(
        tokens,
        right.tokens,
        name="your tokens",
        mistakes={"the last token has no next one: leave it out of the inputs": line},
    )
    assert_equal(
        targets,
        right.targets,
        name="your targets",
        mistakes={
            "your targets are the inputs themselves; each must be the token that comes next": (
                _marked(turns)[:-1]
            ),
            "your targets are shifted by two": [*right.targets[1:], IGNORE],
            "you learn the user's words, too": line[1:],
            "<|im_end|> is not learned: the model would never stop": [
                IGNORE if t == end else t for t in right.targets
            ],
            "you learn the line end after <|im_end|>, which the model never writes": (
                _marked(turns, closing=2)[1:]
            ),
            "you learn the opening of the assistant's turn, which is always given": (
                _marked(turns, opening=True)[1:]
            ),
            "only the last answer is learned; each one is": (
                _marked([(r if i == len(turns) - 1 else "", *p) for i, (r, *p) in enumerate(turns)])
            )[1:],
        },
    )


def _marked(turns, closing: int = 1, opening: bool = False) -> list[int]:
    """The whole line, with IGNORE for what is not learned."""
    marked = []
    for role, before, said, after in turns:
        answers = role == "assistant"
        marked += [t if answers and opening else IGNORE for t in before]
        marked += [t if answers else IGNORE for t in said]
        marked += [t if answers and i < closing else IGNORE for i, t in enumerate(after)]
    return marked


def first_fit(student: Callable, *, seed: int = 0) -> None:
    """Rows of example numbers, for lengths on which other rules give other rows."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 11, (40,), generator=random).tolist() + [10, 10, 1]
    right = _rows(lengths, 10)
    assert_equal(
        student(list(lengths), 10),
        right,
        name="your rows",
        mistakes={
            "you look only at the last row; earlier ones may still have room": _rows(
                lengths, 10, among=lambda rows: rows[-1:]
            ),
            "you take the last row with room; take the first": _rows(
                lengths, 10, among=lambda rows: rows[::-1]
            ),
            "you overfill: the example must fit into what is left": _rows(lengths, 11),
            "an example that fills a row exactly fits, too": _rows(lengths, 10, spare=1),
            "every example got a row of its own": [[i] for i in range(len(lengths))],
        },
    )
    assert_equal(student([], 8), [], name="your rows for no examples")
    refuses(student, [3, 9], 8, words="9")


def _rows(lengths, size, among=lambda rows: rows, spare=0) -> list[list[int]]:
    """Rows by the rule that looks at the rows `among(rows)`, leaving `spare` places free."""
    rows: list[list[int]] = []
    for i, n in enumerate(lengths):
        fits = [r for r in among(rows) if sum(lengths[j] for j in r) + n <= size - spare]
        if fits:
            fits[0].append(i)
        else:
            rows.append([i])
    return rows


def fixed_loss(student: Callable, *, seed: int = 0) -> None:
    """Ragged rows padded with the end token, one of them with no learned token at all."""
    random = torch.Generator().manual_seed(seed)
    B, T, V, end = 3, 9, 7, 2
    logits = torch.randn(B, T, V, generator=random)
    lengths = torch.tensor([9, 5, 4])
    inside = torch.arange(T) < lengths[:, None]
    tokens = torch.randint(3, V, (B, T), generator=random).where(inside, end)
    tokens[torch.arange(B), lengths - 1] = end
    learned = torch.arange(T) >= torch.tensor([[3], [2], [9]])

    def loss(logits, keep, shift=1, per_row=False):
        keep, wanted = keep[:, shift:], tokens[:, shift:]
        nats = F.cross_entropy(logits[:, : T - shift].transpose(1, 2), wanted, reduction="none")
        if per_row:
            return ((nats * keep).sum(1) / keep.sum(1).clamp(min=1)).mean()
        return (nats * keep).sum() / keep.sum()

    keep = learned & inside
    right = loss(logits, keep)
    answer = student(logits, tokens, learned, lengths)
    assert_shape(answer, (), "your loss")
    assert_close(
        answer,
        right,
        name="your loss",
        mistakes={
            "the bug is still there: the end of an answer, at lengths - 1, is not learned": loss(
                logits, keep & (tokens != end)
            ),
            "the padding is learned, too: it lies at or after the row's length": loss(
                logits, learned
            ),
            "your end token is learned, but so is what the user says": loss(logits, inside),
            "you compare each token with itself: position t predicts token t + 1": loss(
                logits, keep, shift=0
            ),
            "you average over all places, not over the learned ones": (
                right * keep[:, 1:].sum() / keep[:, 1:].numel()
            ),
            "you average each row first: a short answer then weighs as much as a long one": loss(
                logits, keep, per_row=True
            ),
        },
    )
    assert_same_gradients(
        lambda x: student(x, tokens, learned, lengths),
        lambda x: loss(x, keep),
        (logits,),
        name="fixed_loss",
    )


def overlap(student: Callable, n_kept: int, blind_spot: str, *, seed: int = 0) -> None:
    """ROUGE-L on hand-made and generated texts; the count it leaves; and what it cannot see."""
    pairs = [
        ("a b c d", "a c d"),  # in order, not side by side
        ("a b c", "c b a"),
        ("say it twice", "Say It"),
        ("a a b", "a b b b b"),
        ("dog", "cat"),
    ]
    texts = [t.instruction for t in tasks(12, SINGLES, torch.Generator().manual_seed(seed))]
    pairs += pairwise(texts)
    yours = [student(a, b) for a, b in pairs]
    assert_type(yours[0], float, "your overlap")
    right = [self_instruct.rouge_l(a, b) for a, b in pairs]
    words = [(a.lower().split(), b.lower().split()) for a, b in pairs]
    # Twice the words of the subsequence.
    twice = [r * (len(x) + len(y)) for r, (x, y) in zip(right, words, strict=True)]

    def divided(numbers, by):
        return [n / by(x, y) for n, (x, y) in zip(numbers, words, strict=True)]

    def both(x, y):
        return len(x) + len(y)

    common = [2 * sum(min(x.count(w), y.count(w)) for w in set(x)) for x, y in words]
    assert_close(
        yours,
        right,
        name="your overlaps",
        mistakes={
            "you count common words in any order; a subsequence keeps the order": divided(
                common, both
            ),
            "you want the words side by side; a subsequence may skip some": divided(
                [2 * _longest_run(x, y) for x, y in words], both
            ),
            "you divide by the first text only": divided(twice, lambda x, y: 2 * len(x)),
            "you divide by the second text only": divided(twice, lambda x, y: 2 * len(y)),
            "you divide by the longer text; take the mean length": divided(
                twice, lambda x, y: 2 * max(len(x), len(y))
            ),
            "you forgot the factor 2": divided(twice, lambda x, y: 2 * both(x, y)),
            "capital letters must not count": [
                self_instruct.rouge_l(_told_apart(a), _told_apart(b)) for a, b in pairs
            ],
        },
    )
    assert_close(student("", "dog"), 0.0, name="the overlap with an empty text")
    pool = [t.instruction for t in tasks(120, SINGLES, torch.Generator().manual_seed(0))]
    right = len(self_instruct.sift([(t, "x") for t in pool], [], self_instruct.Rules()).kept)
    assert_equal(n_kept, right, name="n_kept", mistakes={"you kept all: 0.7 drops some": len(pool)})
    assert_equal(
        blind_spot,
        "b",
        name="blind_spot",
        mistakes={
            "(a) is seen: 10 of 13 words stand in the same order, 0.77": "a",
            "(c) is seen: the overlap of equal texts is 1": "c",
        },
    )


def _longest_run(x: list[str], y: list[str]) -> int:
    """The most words that stand side by side in both."""
    spans = {tuple(y[i:j]) for i in range(len(y)) for j in range(i + 1, len(y) + 1)}
    return max(
        (j - i for i in range(len(x)) for j in range(i + 1, len(x) + 1) if tuple(x[i:j]) in spans),
        default=0,
    )


def _told_apart(text: str) -> str:
    """Words with capitals become words of their own, so that lower case cannot join them."""
    return " ".join(word if word.islower() else word.lower() + "^" for word in text.split())
