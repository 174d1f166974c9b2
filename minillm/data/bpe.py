"""Byte-level byte-pair encoding as pure functions: split, count, merge, encode.

A *piece* is what the pre-tokenisation regex cuts out of the text: merges never cross pieces.
A *token* is a non-empty `bytes`; a *merge* is a pair of tokens that may become one.

Sources: Sennrich et al. 2016 (arXiv:1508.07909), §3.2; Radford et al. 2019 (GPT-2), §2.2.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain
from operator import add

import regex
from tqdm.auto import tqdm

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_PATTERN = GPT4_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")  # digits one by one
# Applied one after the other: first every digit stands alone, then GPT-2's rule.
SMOLLM_PATTERN = (r"\p{N}", GPT2_PATTERN)

# The 256 single-byte tokens in GPT-2's order: printable bytes first, then the rest. GPT-2 writes
# the bytes of the second group as the characters from U+0100 on, because a vocabulary file
# should hold no spaces and no control characters.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_ORDER = bytes(_PRINTABLE + sorted(set(range(256)) - set(_PRINTABLE)))
BYTE_TO_CHAR = {b: chr(b if b in _PRINTABLE else 0x100 + i - 188) for i, b in enumerate(BYTE_ORDER)}
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}
_BYTE_TO_ID = bytes(BYTE_ORDER.index(b) for b in range(256))  # a table for bytes.translate

Pattern = str | Sequence[str]
Merge = tuple[bytes, bytes]


def stages(pattern: Pattern) -> tuple[str, ...]:
    """One regex, or several that are applied one after the other, as a tuple."""
    return (pattern,) if isinstance(pattern, str) else tuple(pattern)


def lossless(stage: str) -> str:
    """Extend a regex so that text it does not match becomes a piece instead of getting lost."""
    return rf"(?:{stage})|(?:(?!(?:{stage}))[\s\S])+"


@lru_cache
def _compile(stage: str) -> regex.Pattern:
    try:
        compiled = regex.compile(lossless(stage))
        covers_nothing = regex.fullmatch(stage, "") is not None
    except regex.error as error:
        raise ValueError(f"pattern {stage!r} is not a valid regex: {error}") from None
    if covers_nothing or compiled.groups:
        raise ValueError(
            f"pattern {stage!r} must match at least one character and have no capturing groups: "
            "write (?:...) instead of (...)"
        )
    return compiled


def pretokenize(text: str, pattern: Pattern = GPT4_PATTERN) -> list[str]:
    """Cut a text into pieces; joined they give the text back.

    >>> pretokenize("it's 12345 words")
    ['it', "'s", ' ', '123', '45', ' words']
    """
    pieces = [text]
    for stage in stages(pattern):
        pieces = list(chain.from_iterable(map(_compile(stage).findall, pieces)))
    return pieces


def count_pieces(texts: Iterable[str], pattern: Pattern = GPT4_PATTERN) -> Counter[str]:
    """How often each piece occurs. Training needs nothing else: 5 MB of prose is 60,000 pieces."""
    return Counter(chain.from_iterable(pretokenize(text, pattern) for text in texts))


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    pattern: Pattern = GPT4_PATTERN,
    progress: bool = False,
) -> list[Merge]:
    """Learn the merges of a byte-level vocabulary of `vocab_size` tokens (256 are the bytes).

    Merges the most frequent pair of neighbours again and again. Ties go to the pair that was
    created first: pairs compare as (left, right) token numbers, bytes in `BYTE_ORDER` before
    merges in the order they were learned. The `tokenizers` library has the same rule.
    Returns fewer than `vocab_size - 256` merges if the text has no pairs left.
    Raises ValueError if `vocab_size` < 256 or `texts` is one string.
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size {vocab_size} must be at least 256, one token for each byte")
    if isinstance(texts, str):
        raise ValueError("texts is one str, expected an iterable of them: write [text]")
    pairs = merge_counted_pieces(count_pieces(texts, pattern), vocab_size - 256, progress)
    tokens = [bytes([b]) for b in BYTE_ORDER]
    for left, right in pairs:
        tokens.append(tokens[left] + tokens[right])
    return [(tokens[left], tokens[right]) for left, right in pairs]


def merge_counted_pieces(
    counts: Mapping[str, int], n_merges: int, progress: bool = False
) -> list[tuple[int, int]]:
    """The heart of training: pairs of token numbers, most frequent first.

    Each piece is kept as a string whose characters *are* token numbers, so that merging a pair
    is `split` and `join`. Counts change only beside the places that are merged. The heap is
    lazy: an entry may be out of date, since counts of old pairs only fall, and is put right
    when it comes to the top.
    """
    words = [p.encode().translate(_BYTE_TO_ID).decode("latin-1") for p in counts]
    frequency = list(counts.values())
    pair_counts: defaultdict[str, int] = defaultdict(int)
    where: defaultdict[str, list[int]] = defaultdict(list)  # may hold words that lost the pair
    for i, word in enumerate(words):
        for pair in map(add, word, word[1:]):
            pair_counts[pair] += frequency[i]
            where[pair].append(i)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapify(heap)

    merges: list[str] = []
    bar = tqdm(total=n_merges, desc="merges", disable=not progress)
    while heap and len(merges) < n_merges:
        count, pair = heap[0]
        if -count != pair_counts[pair]:
            heapreplace(heap, (-pair_counts[pair], pair))
            continue
        if count == 0:
            break
        heappop(heap)
        new = chr(256 + len(merges))
        merges.append(pair)
        changes: defaultdict[str, int] = defaultdict(int)
        for i in set(where.pop(pair)):
            parts, n = words[i].split(pair), frequency[i]
            words[i] = new.join(parts)
            # Neighbours change only where two parts meet. An empty part between two others
            # means that two of the merged pairs stood side by side.
            for k, part in enumerate(parts):
                if part and k > 0:
                    changes[pair[1] + part[0]] -= n
                    changes[new + part[0]] += n
                    where[new + part[0]].append(i)
                if part and k < len(parts) - 1:
                    changes[part[-1] + pair[0]] -= n
                    changes[part[-1] + new] += n
                    where[part[-1] + new].append(i)
                if not part and 0 < k < len(parts) - 1:
                    changes[pair[1] + pair[0]] -= n
                    changes[new + new] += n
                    where[new + new].append(i)
        for p, change in changes.items():
            pair_counts[p] += change
            if change > 0:  # only pairs with the new token grow
                heappush(heap, (-pair_counts[p], p))
        del pair_counts[pair]
        bar.update()
    bar.close()
    return [(ord(pair[0]), ord(pair[1])) for pair in merges]


def merge_piece(piece: bytes, rank: Callable[[Merge], int | None]) -> list[bytes]:
    """Encode one piece: merge the pair of lowest rank, leftmost first, until none is left.

    `rank((left, right))` is the place of a merge in the order of training, None if there is no
    such merge. A lazy heap makes this O(n log n) in the length of the piece.

    >>> merge_piece(b"abcab", {(b"a", b"b"): 0, (b"c", b"ab"): 1}.get)
    [b'ab', b'cab']
    """
    size = len(piece)
    parts = [piece[i : i + 1] for i in range(size)]  # b"" once swallowed by the part before
    before, after = list(range(-1, size - 1)), list(range(1, size + 1))
    heap: list[tuple[int, int, bytes, bytes]] = []

    def push(i: int) -> None:
        if i >= 0 and after[i] < size:
            pair = parts[i], parts[after[i]]
            if (priority := rank(pair)) is not None:
                heappush(heap, (priority, i, *pair))

    for i in range(size):
        push(i)
    while heap:
        _, i, left, right = heappop(heap)
        j = after[i]
        if parts[i] != left or j == size or parts[j] != right:
            continue  # out of date: one of the two has been merged meanwhile
        parts[i], parts[j] = left + right, b""
        after[i] = after[j]
        if after[i] < size:
            before[after[i]] = i
        push(before[i])
        push(i)
    return [part for part in parts if part]


def all_come_out_whole(merges: Sequence[Merge]) -> bool:
    """Whether every token made by these merges, encoded alone, gives just that token.

    True for all merges that training learns. It fails when, inside some token, an earlier merge
    reaches across the border between its two halves. So for each merge go back in time from the
    two halves, always undoing the one made last: the tokens that touch the border at each moment
    must have no merge that comes before one of them is used up.
    """
    rank: dict[Merge, int] = {}
    born: defaultdict[bytes, int] = defaultdict(lambda: -1)  # bytes are there from the start
    halves: dict[bytes, Merge] = {}
    for k, (left, right) in enumerate(merges):
        x, y, x_used, y_used = left, right, k, k
        made = (len(left) == 1 or left in halves) and (len(right) == 1 or right in halves)
        if not made or left + right in halves:
            return False
        while True:
            crossing = rank.get((x, y), k)
            if crossing < x_used and crossing <= y_used:  # among equals the leftmost goes first
                return False
            if born[x] > born[y]:
                x, x_used = halves[x][1], born[x]
            elif len(y) > 1:
                y, y_used = halves[y][0], born[y]
            else:
                break
        token = left + right
        rank[left, right], born[token], halves[token] = k, k, (left, right)
    return True
