"""Checks for the exercises of lesson 02. Each names the mistake it recognises."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

from minillm.course.checks.common import assert_close, assert_equal, assert_type, refuses
from minillm.data.bpe import count_pieces, merge_piece, pretokenize
from minillm.data.tokenizer import Tokenizer

_TEXT = (
    "The singers sang, and the songs they sang were strong:  'Sing!' they sang.\n\n"
    "Naïve singers think  that 12345 songs are a thing; the café says 987 things.\n"
    "   Things sung in the thick of the throng are the best things among 分词器 songs.\n"
)


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.train([_TEXT * 2], 400, ())


@cache
def _long_text() -> tuple[str, list]:
    """Enough text for more than 256 merges: Python's own help on strings."""
    helps = [getattr(str, name).__doc__ for name in dir(str) if not name.startswith("_")]
    text = _TEXT + "\n".join(helps)
    return text, Tokenizer.train([text], 800, ()).merges


def _by_rank(piece: bytes, rank: dict, pick=min) -> list[bytes]:
    """One merge at a time; `pick` chooses among (rank, place)."""
    parts = [bytes([b]) for b in piece]
    while places := [(rank[p], i) for i, p in enumerate(pairwise(parts)) if p in rank]:
        _, i = pick(places)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _ranks(merges: list) -> dict:
    return {pair: i for i, pair in enumerate(merges)}


def _in_reading_order(places: list) -> tuple:
    return min(places, key=lambda place: place[1])


def encode(student: Callable, text: str = _TEXT) -> None:
    """From a text to ids: pieces, bytes, merges by rank."""
    merges = [(b"l", b"o"), (b"lo", b"w")]
    ids = {bytes([b]): b for b in range(256)} | {b"lo": 256, b"low": 257}
    result = student("low lo", merges, ids)
    assert_type(result, list, "your result")
    if result and isinstance(result[0], bytes):
        raise AssertionError("you return tokens; look up the id of each in `ids`")
    assert_equal(
        result,
        [257, 32, 256],
        name='encode("low lo")',
        mistakes={
            "you stop after the first merge in a piece; repeat until no pair is left": [
                256,
                119,
                32,
                256,
            ],
        },
    )
    tokenizer = _tokenizer()
    merges, ids = tokenizer.merges, tokenizer.tokens
    # Pairs that no piece holds, but uncut text does.
    merges = [(b"g", b" "), (b"s", b" "), *merges]
    ids = ids | {b"g ": 400, b"s ": 401}
    rank = _ranks(merges)

    def answer(cut: bool = True, pick=min) -> list[int]:
        pieces = pretokenize(text) if cut else [text]
        return [ids[t] for p in pieces for t in _by_rank(p.encode(), rank, pick)]

    try:
        result = student(text, merges, ids)
    except (KeyError, ValueError) as error:
        raise AssertionError(
            f"every byte is in `ids`, yet your code stops at {error}: start from the bytes of "
            "piece.encode(), not from characters"
        ) from None
    assert_equal(
        result,
        answer(),
        name="your ids for a longer text",
        mistakes={
            "your merges cross the borders of pieces: cut the text with pretokenize first": answer(
                cut=False
            ),
            "you merge in reading order; the pair learned first has to go first": answer(
                pick=_in_reading_order
            ),
            "you merge the pair learned last first; take the lowest rank": answer(pick=max),
        },
    )
    assert_equal(student("", merges, ids), [], name='encode("")')
    few = {bytes([b]): b for b in b"abc"}
    refuses(student, "abd", [], few, words="0x64|100|b'd'")


def stream(student: Callable, sizes: tuple[int, ...] = (1, 7, 2, 30, 3)) -> None:
    """Chunks cut anywhere give the ids of the whole, lazily, without keeping the text."""
    tokenizer, text = _tokenizer(), (_TEXT * 20).strip()
    chunks, start = [], 0
    while start < len(text):
        chunks.append(text[start : start + sizes[len(chunks) % len(sizes)]])
        start += len(chunks[-1])
    longest, consumed = 0, 0

    def encode(part: str) -> list[int]:
        nonlocal longest
        longest = max(longest, len(part))
        return tokenizer.encode(part)

    def source() -> Iterator[str]:
        nonlocal consumed
        for chunk in chunks:
            consumed += 1
            yield chunk

    result = student(source(), encode)
    if not hasattr(result, "__next__"):
        raise AssertionError(
            f"your result is a {type(result).__name__}; use `yield`, so that ids come one by one"
        )
    ids = []
    for i in result:
        if not ids and consumed == len(chunks):
            raise AssertionError(
                "you read all chunks before you give the first id: that needs memory for the "
                "whole text"
            )
        ids.append(i)
    whole = tokenizer.encode(text)

    def after_blank() -> list[int]:
        rest, found = "", []
        for chunk in chunks:
            rest += chunk
            cut = rest.rfind(" ") + 1
            found += tokenizer.encode(rest[:cut])
            rest = rest[cut:]
        return found + tokenizer.encode(rest)

    mistakes = {
        "you encode every chunk alone; a chunk may end inside a word": [
            i for chunk in chunks for i in tokenizer.encode(chunk)
        ],
        "you cut after a blank, but a blank belongs to the word that follows it": after_blank,
    }
    if ids != whole and ids and ids == whole[: len(ids)]:
        raise AssertionError("the end is missing: encode what is left after the last chunk")
    assert_equal(ids, whole, name="the ids of the stream", mistakes=mistakes)
    if longest > 400:
        raise AssertionError(
            f"you encoded {longest} characters in one go; keep only what comes after the cut"
        )
    only_one = list(student(iter(["word"]), encode))
    assert_equal(only_one, tokenizer.encode("word"), name="the ids of a single chunk")
    refuses(lambda text: list(student(text, encode)), "a text", words="str|chunk|iterable")


def merge(student: Callable, piece: bytes = b"throngsangthinking") -> None:
    """The order of merges: lowest rank first, leftmost among equals."""
    rank = {(b"b", b"c"): 0, (b"a", b"b"): 1, (b"a", b"bc"): 2}
    reading = "you still merge in reading order; the pair with the lowest rank has to go first"
    assert_equal(
        student(b"abc", rank),
        [b"abc"],
        name='merge(b"abc")',
        mistakes={
            reading: [b"ab", b"c"],
            "you merge only once; go on until no pair is left": [b"a", b"bc"],
        },
    )
    assert_equal(
        student(b"aaa", {(b"a", b"a"): 0}),
        [b"aa", b"a"],
        name='merge(b"aaa")',
        mistakes={
            "among pairs of equal rank you take the last; take the leftmost": [b"a", b"aa"],
            "one token was merged twice: after a merge, look again from the parts as they are": [
                b"aa",
                b"aa",
            ],
        },
    )
    ranks = _ranks(_tokenizer().merges)
    assert_equal(
        student(piece, ranks),
        merge_piece(piece, ranks.get),
        name=f"merge({piece!r})",
        mistakes={
            reading: _by_rank(piece, ranks, _in_reading_order),
            "you take the highest rank; the pair learned first has the lowest": _by_rank(
                piece, ranks, max
            ),
        },
    )
    assert_equal(student(b"", rank), [], name='merge(b"")')


def compression(student: Callable, sizes: tuple[int, ...] = (256, 300, 450)) -> None:
    """Bytes per token with the first merges only."""
    text, merges = _long_text()
    counts = count_pieces([text])

    def tokens(n_merges: int) -> int:
        rank = _ranks(merges[:n_merges]).get
        return sum(n * len(merge_piece(p.encode(), rank)) for p, n in counts.items())

    def answer(size_of: Callable[[int], float]) -> list[float]:
        return [size_of(size) for size in sizes]

    n_bytes = len(text.encode())
    result = student(text, merges, list(sizes))
    assert_type(result, dict, "your result")
    assert_equal(list(result), list(sizes), name="the vocabulary sizes in your result")
    assert_close(
        list(result.values()),
        answer(lambda size: n_bytes / tokens(size - 256)),
        name="bytes per token",
        mistakes={
            "you measure characters per token; count the bytes of the text": answer(
                lambda size: len(text) / tokens(size - 256)
            ),
            "you measure tokens per byte; turn the fraction over": answer(
                lambda size: tokens(size - 256) / n_bytes
            ),
            "256 of the tokens are the bytes: a vocabulary of V has V - 256 merges": answer(
                lambda size: n_bytes / tokens(size)
            ),
            "merges cross the borders of pieces: cut the text with bpe.pretokenize first": answer(
                lambda size: (
                    n_bytes / len(merge_piece(text.encode(), _ranks(merges[: size - 256]).get))
                )
            ),
            "you use all merges for every size; take only the first V - 256": answer(
                lambda size: n_bytes / tokens(len(merges))
            ),
            "you count each distinct piece once; a piece counts as often as it occurs": answer(
                lambda size: (
                    n_bytes
                    / sum(
                        len(merge_piece(p.encode(), _ranks(merges[: size - 256]).get))
                        for p in counts
                    )
                )
            ),
        },
    )
    refuses(student, text, merges, [255], words="255")
    refuses(student, text, merges, [257 + len(merges)], words=str(257 + len(merges)))


def cheapest(student: Callable, verdict: Callable, d_model: int = 64) -> None:
    """The vocabulary that needs the fewest FLOPs per byte of text, and what follows from it."""
    measured = {4096: 4.1, 256: 1.0, 512: 2.5, 1024: 2.9, 16384: 4.8}

    def best(body: float, cost: Callable[[float, int, float], float]) -> int:
        return min(sorted(measured), key=lambda v: cost(body, v, measured[v]))

    bodies = (1e4, 1e5, 1e6, 1e8)
    result = [student(dict(measured), d_model, body) for body in bodies]
    for value in result:
        assert_type(value, int, "the vocabulary size")
    assert_equal(
        result,
        [best(b, lambda n, v, c: (n + v * d_model) / c) for b in bodies],
        name=f"the cheapest sizes for bodies of {bodies} parameters",
        mistakes={
            "you leave out the output matrix: V rows of d_model weights": [16384] * 4,
            "you leave out the body of the model": [
                best(b, lambda n, v, c: v * d_model / c) for b in bodies
            ],
            "you count V rows but not that each has d_model weights": [
                best(b, lambda n, v, c: (n + v) / c) for b in bodies
            ],
            "you minimise the cost per token; a token holds several bytes: divide": [256] * 4,
        },
    )
    assert_equal(
        student({512: 2.0, 256: 2.0}, 0, 1e3), 256, name="the answer when two sizes cost the same"
    )
    refuses(student, {}, d_model, 1e6, words="empty|no |at least one|{}")
    answer = verdict()
    assert_type(answer, str, "verdict()")
    if answer not in ("grows", "shrinks", "stays"):
        raise AssertionError(f'verdict() is {answer!r}; expected "grows", "shrinks" or "stays"')
    if answer != "grows":
        raise AssertionError(
            f"verdict() says the best vocabulary {answer!r} as the body grows: look at your own "
            "figure, where the minimum of each curve lies"
        )
