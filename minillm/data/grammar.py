"""A probabilistic grammar in which every choice shows at once in the next token.

So the prefix of a text always determines the state it is in, the probability of a token
given everything before it is the probability of one choice, and the entropy of a whole text
follows by recursion. `story_grammar.py` describes how plots and words are written.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

END_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Word:
    """A word and its forms, e.g. Word("Mia", {"they": "she", "their": "her"})."""

    text: str
    forms: dict[str, str] = field(default_factory=dict, hash=False)


# A grammar is compiled into linked nodes; every node knows what follows it, and None means
# that the story is over. The state of a story is (node, bindings): where we are, and which
# word each variable stands for.


@dataclass(frozen=True, eq=False)
class _Say:
    """Say a fixed word, or a form of the word that a variable stands for ("": the word)."""

    word: str
    variable: str
    form: str
    after: "_Node"


@dataclass(frozen=True, eq=False)
class _Draw:
    """Bind a variable to a new word of a class; `chooser` is the variable that names it."""

    variable: str
    kind: str
    chooser: str
    after: "_Node"


@dataclass(frozen=True, eq=False)
class _Branch:
    ways: tuple[tuple[float, _Say], ...]


_Node = _Say | _Draw | _Branch | None
_Bindings = dict[str, Word]
# A token, its probability, the node it leads to, and the binding it makes, if any.
_Option = tuple[str, float, _Node, tuple[str, Word] | None]


class Grammar:
    """A probabilistic grammar in which every choice shows at once in the next token.

    Args:
        plots: the texts described in `story_grammar.py`; a story follows one, evenly chosen.
        words: the classes that the plots draw from.

    Raises:
        ValueError: alternatives do not begin with different fixed words, two classes share
            a word, or a plot uses what is not defined.
    """

    def __init__(self, plots: Sequence[str], words: Mapping[str, Sequence[Word]]):
        texts = [word.text for members in words.values() for word in members]
        twice = sorted({text for text in texts if texts.count(text) > 1})
        if twice:
            raise ValueError(f"words stand twice in the classes: {', '.join(twice)}; keep one each")
        self.words = words
        self._steering: set[str] = set()  # the forms that name classes
        self.start = self._link(_parse(iter(f"[ {' | '.join(plots)} ]".split())), None)

    def _link(self, parts: list, after: _Node) -> _Node:
        """Turn parsed parts into nodes, from the last to the first."""
        for part in reversed(parts):
            if isinstance(part, list):
                after = self._branch(part, after)
            elif not part.startswith("{"):
                after = _Say(part, "", "", after)
            elif ":" in part:
                variable, kind = part.strip("{}").split(":")
                chooser, _, form = kind.rpartition(".")
                if chooser:
                    self._steering.add(form)
                elif kind not in self.words:
                    raise ValueError(
                        f"{part}: no class {kind!r}; there are {', '.join(self.words)}"
                    )
                after = _Draw(variable, form, chooser, after)
            else:
                variable, _, form = part.strip("{}").partition(".")
                after = _Say("", variable, form, after)
        return after

    def _branch(self, ways: list[tuple[float, list]], after: _Node) -> _Branch:
        linked = tuple((odds, self._link(parts, after)) for odds, parts in ways)
        first = [way.word if isinstance(way, _Say) else "" for _, way in linked]
        if not all(first) or len(set(first)) < len(first):
            raise ValueError(f"alternatives must begin with different fixed words, got {first}")
        return _Branch(linked)

    def options(self, node: _Node, bound: _Bindings) -> list[_Option]:
        """All tokens that may come next, with probabilities that sum to 1."""
        if node is None:
            return [(END_TEXT, 1.0, None, None)]
        if isinstance(node, _Branch):
            total = sum(odds for odds, _ in node.ways)
            return [(way.word, odds / total, way.after, None) for odds, way in node.ways]
        if isinstance(node, _Draw):
            kind = bound[node.chooser].forms[node.kind] if node.chooser else node.kind
            taken = {word.text for word in bound.values()}
            words = [word for word in self.words[kind] if word.text not in taken]
            return [(w.text, 1 / len(words), node.after, (node.variable, w)) for w in words]
        if node.word:
            return [(node.word, 1.0, node.after, None)]
        word = bound[node.variable]
        return [(word.forms[node.form] if node.form else word.text, 1.0, node.after, None)]

    def sample(self, generator: torch.Generator | None) -> tuple[list[str], list[float]]:
        """Draw one story: its tokens, END_TEXT last, and their surprisals in nats."""
        tokens, nats = [], []
        node, bound = self.start, {}
        luck = iter(torch.rand(256, generator=generator, dtype=torch.float64).tolist())
        while not tokens or tokens[-1] != END_TEXT:
            choices = self.options(node, bound)
            choice = choices[0] if len(choices) == 1 else _pick(choices, next(luck))
            token, p, node, binding = choice
            bound = _bind(bound, binding)
            tokens.append(token)
            nats.append(-math.log(p))
        return tokens, nats

    def next_token_probabilities(self, prefix: Sequence[str]) -> dict[str, float]:
        """The true distribution of the token that follows a prefix.

        Raises:
            ValueError: no story begins so; the message names the token that cannot follow.
        """
        node, bound = self.start, {}
        for i, token in enumerate(prefix):
            choices = {option[0]: option for option in self.options(node, bound)}
            if token not in choices:
                some = ", ".join(list(choices)[:8]) + (", …" if len(choices) > 8 else "")
                raise ValueError(f"no story begins so: token {i} is {token!r}, expected {some}")
            _, _, node, binding = choices[token]
            bound = _bind(bound, binding)
        return {token: p for token, p, _, _ in self.options(node, bound)}

    @cached_property
    def expectation(self) -> tuple[float, float]:
        """Exact (entropy of a story in nats, expected number of its tokens with END).

        The chain rule as a recursion over states: H(state) = Σ over choices of
        −p ln p + p · H(next state). Words that differ only in spelling lead to equally
        uncertain futures, so one representative stands for all of them.
        """
        known: dict[tuple, tuple[float, float]] = {}

        def rest(node: _Node, bound: _Bindings) -> tuple[float, float]:
            if node is None:
                return 0.0, 1.0
            state = (id(node), tuple(word.text for word in bound.values()))
            if state not in known:
                entropy, length = 0.0, 1.0
                for p, like, after, then in self._futures(node, bound):
                    more_entropy, more_length = rest(after, then)
                    entropy += p * (more_entropy - math.log(p) + math.log(like))
                    length += p * more_length
                known[state] = (entropy, length)
            return known[state]

        return rest(self.start, {})

    def _futures(self, node: _Node, bound: _Bindings) -> Iterator[tuple]:
        """Groups of equally likely choices with alike futures: (p of group, size, state)."""
        groups: dict[tuple, list] = {}
        for _, p, after, binding in self.options(node, bound):
            forms = binding[1].forms if binding else {}
            role = tuple(forms.get(form) for form in sorted(self._steering))
            groups.setdefault((p, id(after), role), []).append((after, binding))
        for (p, _, _), group in groups.items():
            after, binding = group[0]
            yield p * len(group), len(group), after, _bind(bound, binding)

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every token that a story may contain: END_TEXT first, then sorted."""
        members = [word for words in self.words.values() for word in words]
        found = {word.text for word in members}
        seen, waiting = set(), [self.start]
        while waiting:
            node = waiting.pop()
            if node is None or id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, _Branch):
                waiting += [way for _, way in node.ways]
                continue
            waiting.append(node.after)
            if isinstance(node, _Say) and node.word:
                found.add(node.word)
            elif isinstance(node, _Say) and node.form:
                found |= {word.forms[node.form] for word in members if node.form in word.forms}
        return [END_TEXT, *sorted(found)]


def _parse(tokens: Iterator[str]) -> list:
    """Parts up to the end or to "]" or "|": words, holes, and lists of alternatives."""
    parts: list = []
    for token in tokens:
        parts.append(token if token != "[" else [])
        if token in ("]", "|"):
            break
        end = "|"
        while token == "[" and end == "|":
            *way, end = _parse(tokens)
            odds = 1.0
            if way[0].isdigit():
                odds, *way = float(way[0]), *way[1:]
            parts[-1].append((odds, way))
    return parts


def _bind(bound: _Bindings, binding: tuple[str, Word] | None) -> _Bindings:
    return bound if binding is None else {**bound, binding[0]: binding[1]}


def _pick(choices: list[_Option], luck: float) -> _Option:
    """The choice in whose share of [0, 1) the number `luck` falls."""
    for choice in choices:
        luck -= choice[1]
        if luck < 0:
            return choice
    return choices[-1]  # only by rounding
