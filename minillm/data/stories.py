"""Generated stories whose entropy is known exactly: a floor no language model can beat.

A story grows word by word. Wherever the grammar has a choice, the very next token shows
which one was taken, so the prefix always determines the state, and the probability of a
token given everything before it is the probability of one choice. Its negative logarithm,
in nats, is the token's exact surprisal. Names, pronouns, agreement, causes and who-has-what
must be carried over many words: a model that looks back only a few tokens stays above the
floor. The words and plots stand in `story_grammar.py`, the arithmetic in `grammar.py`.

Every story ends with END, which costs 0 nats. Measure a model against the floor on whole
stories, one a row (`batches`): a window that begins in the middle of a story has lost what
was said before. Rows that begin with their story are also far easier to learn from.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset, DatasetDict

from minillm.data.grammar import END_TEXT, Grammar
from minillm.data.packing import Batch, one_a_row
from minillm.data.story_grammar import PLOTS, WORDS


@dataclass(frozen=True)
class Story:
    """A story with the exact surprisal of each of its tokens.

    `tokens` ends with END_TEXT, which `text` does not show; `nats[i]` is
    −ln p(tokens[i] | tokens[:i]).
    """

    text: str
    tokens: list[str]
    nats: list[float]


GRAMMAR = Grammar(PLOTS, WORDS)
_VOCABULARY = GRAMMAR.vocabulary
_IDS = {token: i for i, token in enumerate(_VOCABULARY)}
END = _IDS[END_TEXT]
_TOKEN = re.compile(r'[A-Za-z]+|[.,?"]')


def vocabulary() -> list[str]:
    """All tokens in the order of their ids; END_TEXT is the first."""
    return list(_VOCABULARY)


def entropy_per_story() -> float:
    """Exact entropy of a story in nats: the least possible expected total loss on one."""
    return GRAMMAR.expectation[0]


def tokens_per_story() -> float:
    """Exact expected number of tokens of a story, END included."""
    return GRAMMAR.expectation[1]


def sample_story(generator: torch.Generator | None = None) -> Story:
    """Draw one story."""
    tokens, nats = GRAMMAR.sample(generator)
    return Story(detokenize(tokens), tokens, nats)


def stories(n: int, seed: int) -> list[Story]:
    """Draw n stories, the same for the same seed.

    Raises:
        ValueError: n is negative.
    """
    if n < 0:
        raise ValueError(f"n={n}: expected the number of stories, 0 or more")
    generator = torch.Generator().manual_seed(seed)
    return [sample_story(generator) for _ in range(n)]


def dataset(n_train: int, n_validation: int, n_test: int, seed: int) -> DatasetDict:
    """Distinct stories in three parts; columns text, nats and n_tokens of the whole story.

    No story stands in two parts. `n_tokens` counts END, so sum(nats) / sum(n_tokens) is the
    floor of a loss per token.

    Raises:
        ValueError: a size is negative.
    """
    sizes = {"train": n_train, "validation": n_validation, "test": n_test}
    if min(sizes.values()) < 0:
        raise ValueError(f"sizes {sizes}: expected numbers of stories, 0 or more")
    generator = torch.Generator().manual_seed(seed)
    distinct: dict[str, dict] = {}
    while len(distinct) < sum(sizes.values()):
        story = sample_story(generator)
        row = {"text": story.text, "nats": sum(story.nats), "n_tokens": len(story.tokens)}
        distinct.setdefault(story.text, row)
    rows = iter(distinct.values())
    return DatasetDict(
        {part: Dataset.from_list([next(rows) for _ in range(n)]) for part, n in sizes.items()}
    )


def batches(
    texts: Sequence[str], batch_size: int, generator: torch.Generator | None = None
) -> Iterator[Batch]:
    """One epoch of batches with one story a row (`one_a_row`).

    With a generator the stories are shuffled; without, they come in order.

    Raises:
        ValueError: batch_size is not positive, or a text is no story.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected 1 or more stories")
    rows = [encode(text) for text in texts]
    order = (
        range(len(rows)) if generator is None else torch.randperm(len(rows), generator=generator)
    )
    for first in range(0, len(rows), batch_size):
        yield one_a_row([rows[i] for i in order[first : first + batch_size]], END)


def next_token_probabilities(prefix: Sequence[str]) -> dict[str, float]:
    """The true distribution of the token after a prefix of tokens; raises like Grammar's."""
    return GRAMMAR.next_token_probabilities(prefix)


def tokenize(text: str) -> list[str]:
    """Words and punctuation, in lower case except names and "I".

    Raises:
        ValueError: a word that no story contains.
    """
    tokens = []
    for word in _TOKEN.findall(text):
        token = word if word in _IDS else word[0].lower() + word[1:]
        if token not in _IDS:
            raise ValueError(f"{word!r} is in no story; vocabulary() lists the words that are")
        tokens.append(token)
    return tokens


def detokenize(tokens: Sequence[str]) -> str:
    """Text with its spaces and capital letters; END_TEXT is left out."""
    text, quoted, starts = "", False, True
    for token in tokens:
        if token == END_TEXT:
            continue
        glued = token in ".,?" or (token == '"' and quoted) or text.endswith("\0")
        text = text.removesuffix("\0") + ("" if glued or not text else " ")
        text += token[0].upper() + token[1:] if starts else token
        if token == '"':
            quoted = not quoted
            text += "\0" * quoted  # nothing comes between an opening quote and its word
        starts = token in ".?" or (token == '"' and quoted)
    return text.removesuffix("\0")


def encode(text: str) -> list[int]:
    """Token ids of a text, without END (packing adds it)."""
    return [_IDS[token] for token in tokenize(text)]


def decode(ids: Sequence[int]) -> str:
    """The text of token ids; END is left out.

    Raises:
        ValueError: an id outside the vocabulary.
    """
    for i in ids:
        if not 0 <= i < len(_VOCABULARY):
            raise ValueError(f"id {i}: expected 0 to {len(_VOCABULARY) - 1}")
    return detokenize([_VOCABULARY[i] for i in ids])
