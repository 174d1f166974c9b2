"""Packing: documents of any length become batches of one fixed shape.

All documents of an epoch are laid end to end, each behind one end token, and a last end
token closes the row:

    end d0 d0 d0 end d1 d1 end d2 … end

The line is then cut into blocks of T inputs; the targets are the same line one step later.
Nothing is padded away and nothing is predicted twice: every token of every document, and
the end of every document, is a target exactly once an epoch. The end token *starts* a
document as an input (it says "something new begins") and *closes* one as a target.

Shapes: B batch (blocks), T time (tokens in a block).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORE = -100  # a target that no loss counts, as in torch.nn.functional.cross_entropy


@dataclass(frozen=True)
class Batch:
    """One batch, ready for a model.

    tokens: (B, T) int64, the inputs.
    targets: (B, T) int64, the token that follows each input, or IGNORE where there is none.
    documents: (B, T) int64, which document each input belongs to, or None. A model that is
        given it lets a position attend only to positions of its own document.
    """

    tokens: Tensor
    targets: Tensor
    documents: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        documents = None if self.documents is None else self.documents.to(device)
        return replace(
            self,
            tokens=self.tokens.to(device),
            targets=self.targets.to(device),
            documents=documents,
        )


def one_a_row(documents: Sequence[Sequence[int]], end_token: int) -> Batch:
    """One batch with a document a row: the end token, the document, the end token, then padding.

    The first input is the end token, so that the first token is predicted too; padded targets are
    IGNORE. Unlike packing this wastes a little room, but every document is whole.
    """
    rows = [torch.tensor([end_token, *document, end_token]) for document in documents]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE)
    tokens, targets = padded[:, :-1].clone(), padded[:, 1:].contiguous()
    tokens[tokens == IGNORE] = end_token
    return Batch(tokens, targets)


class Batches:
    """Iterate over packed batches; one `for` loop is one epoch, `forever()` never ends.

    documents: sequences of token ids; any sequence of sequences will do, and only the
        documents of the current batch are read.
    block_size: T, inputs in a block.  batch_size: B, blocks in a batch.
    end_token: id of the token that separates documents.
    generator: shuffles the documents anew every epoch; None keeps their order. Give it to
        nobody else, or `load_state_dict` cannot bring it back.
    mask_documents: fill `Batch.documents`, so that packed neighbours do not see each other.
    drop_last: True leaves out the tail that does not fill a batch. False keeps it: the last
        block is filled with end tokens whose targets are IGNORE, and the last batch may
        have fewer blocks.

    Raises ValueError for sizes below 1 or documents that do not fill one batch.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        *,
        block_size: int,
        batch_size: int,
        end_token: int,
        generator: torch.Generator | None = None,
        mask_documents: bool = False,
        drop_last: bool = True,
    ):
        for name, value in (("block_size", block_size), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if len(documents) and isinstance(documents[0], str):
            raise ValueError("documents are texts: expected token ids; encode them first")
        self.documents = documents
        self.block_size = block_size
        self.batch_size = batch_size
        self.end_token = end_token
        self.generator = generator
        self.mask_documents = mask_documents
        self.drop_last = drop_last
        # one more than its length: each document brings its end token
        self._lengths = torch.tensor([len(document) + 1 for document in documents]).long()
        self.n_tokens = int(self._lengths.sum())
        if len(self) == 0:
            raise ValueError(
                f"{len(documents)} documents hold {self.n_tokens} tokens, fewer than one batch "
                f"of {batch_size} × {block_size}: lower block_size or batch_size, or pass "
                "drop_last=False"
            )
        self._resumed = False
        self._epoch_state = self._generator_state()
        self._batch = 0  # the next batch of this epoch

    def __len__(self) -> int:
        """Batches in an epoch."""
        size = self.block_size * self.batch_size
        return self.n_tokens // size if self.drop_last else -(-self.n_tokens // size)

    def __iter__(self) -> Iterator[Batch]:
        """One epoch from its start, or from where `load_state_dict` put us."""
        if not self._resumed:
            self._epoch_state = self._generator_state()
            self._batch = 0
        self._resumed = False
        self._shuffle()
        while self._batch < len(self):
            self._batch += 1  # before the yield: a state saved now resumes after this batch
            yield self._cut(self._batch - 1)

    def forever(self) -> Iterator[Batch]:
        """Epoch after epoch, each in a new order if there is a generator."""
        while True:
            yield from self

    def state_dict(self) -> dict:
        """Where we are: small, and enough to go on exactly as if never stopped."""
        return {
            "batch": self._batch,
            "generator": self._epoch_state,  # (n,) uint8 at the epoch's start, or None
            "n_tokens": self.n_tokens,
            "block_size": self.block_size,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go to a saved position; the next `for` loop or `forever()` continues from it.

        Raises:
            ValueError: the position is one in other documents, sizes, or without the shuffling.
        """
        for name in ("n_tokens", "block_size", "batch_size"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the saved position has {name} {state[name]}, these batches have "
                    f"{getattr(self, name)}: resume with the same documents and sizes"
                )
        if (state["generator"] is None) != (self.generator is None):
            raise ValueError(
                "the saved position was shuffled and these batches are not, or the other way "
                "round: pass a generator exactly if there was one"
            )
        if self.generator is not None:
            self.generator.set_state(state["generator"])
        self._epoch_state = state["generator"]
        self._batch = state["batch"]
        self._resumed = True

    def _generator_state(self) -> Tensor | None:
        return None if self.generator is None else self.generator.get_state()

    def _shuffle(self) -> None:
        """Draw this epoch's order and note where each document ends on the line."""
        n = len(self._lengths)
        if self.generator is None:
            self._order = torch.arange(n)
        else:
            device = self.generator.device
            self._order = torch.randperm(n, generator=self.generator, device=device).cpu()
        self._ends = self._lengths[self._order].cumsum(0)

    def _cut(self, index: int) -> Batch:
        """Batch number `index` of the epoch, straight from its place on the line."""
        size = self.block_size * self.batch_size
        start = index * size
        stop = min(start + size, self.n_tokens)
        line, owners = self._read(start, stop + 1)
        inputs, targets = line[:-1], line[1:]

        missing = -len(inputs) % self.block_size  # only the epoch's last block can lack tokens
        inputs = torch.cat([inputs, inputs.new_full((missing,), self.end_token)])
        targets = torch.cat([targets, targets.new_full((missing,), IGNORE)])
        documents = None
        if self.mask_documents:
            documents = torch.cat([owners[:-1], owners.new_full((missing,), -1)])
            documents = documents.view(-1, self.block_size)
        return Batch(inputs.view(-1, self.block_size), targets.view(-1, self.block_size), documents)

    def _read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Tokens start … stop-1 of the line, and the document each one belongs to."""
        place = int(torch.searchsorted(self._ends, start, right=True))
        offset = start - int(self._ends[place] - self._lengths[self._order[place]])
        tokens: list[int] = []
        owners: list[int] = []
        while len(tokens) < offset + stop - start and place < len(self._order):
            document = int(self._order[place])
            tokens += [self.end_token, *self.documents[document]]
            owners += [document] * int(self._lengths[document])
            place += 1
        tokens.append(self.end_token)  # closes the last document; cut off anywhere else
        owners.append(-1)
        keep = slice(offset, offset + stop - start)
        return torch.tensor(tokens[keep]), torch.tensor(owners[keep])
