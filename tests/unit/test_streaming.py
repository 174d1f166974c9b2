"""Streamed batches: nothing lost or doubled, any number of processes, resumable anywhere."""

import json
from itertools import chain, islice, pairwise

import pytest
import torch
from datasets import Dataset, IterableDataset, load_dataset

from minillm.data.streaming import StreamedBatches

END = 0
SETTINGS = {"block_size": 7, "batch_size": 8, "end_token": END, "n_streams": 4, "window": 5}


def encode(text):
    return [ord(letter) for letter in text]


def texts(n=90):
    """Documents of 1 to 30 letters, no two the same."""
    lengths = torch.randint(1, 31, (n,), generator=torch.Generator().manual_seed(0)).tolist()
    return [chr(1000 + i) * length for i, length in enumerate(lengths)]


@pytest.fixture(params=["8 files", "3 files", "generated", "mapped table"])
def dataset(request, tmp_path):
    """Files that the streams can share out whole, files that they cannot, and no files."""
    if "files" in request.param:
        n_files = int(request.param[0])
        for i in range(n_files):
            lines = [json.dumps({"text": text}) for text in texts()[i::n_files]]
            (tmp_path / f"{i}.jsonl").write_text("\n".join(lines))
        files = str(tmp_path / "*.jsonl")
        return load_dataset("json", data_files=files, split="train", streaming=True)
    if request.param == "generated":
        return IterableDataset.from_generator(
            lambda shards: ({"text": text} for i in shards for text in texts()[i::8]),
            gen_kwargs={"shards": list(range(8))},
        )
    table = Dataset.from_dict({"number": list(range(len(texts())))})
    return table.to_iterable_dataset(num_shards=2).map(lambda row: {"text": texts()[row["number"]]})


def tokens(batches):
    return [batch.tokens.tolist() for batch in batches]


def test_an_epoch_holds_every_document_once(dataset):
    """One stream's line, put together again: the end token and the document, one after another."""
    alone = SETTINGS | {"n_streams": 1, "batch_size": 1}
    n_tokens = sum(len(text) + 1 for text in texts())
    batches = list(islice(StreamedBatches(dataset, encode, **alone), 3 * n_tokens // 7))
    line = torch.cat([batch.tokens[0] for batch in batches])
    assert torch.equal(line[1:], torch.cat([batch.targets[0] for batch in batches])[:-1])
    seen = []
    for epoch in (line[:n_tokens], line[n_tokens : 2 * n_tokens]):
        parts = "".join(map(chr, epoch.tolist())).split(chr(END))
        assert parts[0] == "" and sorted(parts[1:]) == sorted(texts())
        seen.append(parts)
    assert seen[0] != seen[1] and seen[0][1:] != texts()


def test_streams_share_the_documents_out(dataset):
    """All streams together: in as many rows as an epoch has, no document twice in a stream."""
    batches = StreamedBatches(dataset, encode, **SETTINGS)
    owner = {}
    for batch in islice(batches, 6):
        for row, line in enumerate(batch.tokens.tolist()):
            for token in line:
                if token != END:
                    assert owner.setdefault(token, row // 2) == row // 2
    assert set(owner.values()) == {0, 1, 2, 3}


@pytest.mark.parametrize("n", [2, 4])
def test_processes_share_the_same_global_batches(dataset, n):
    whole = list(islice(StreamedBatches(dataset, encode, **SETTINGS), 30))
    parts = [StreamedBatches(dataset, encode, part=(i, n), **SETTINGS) for i in range(n)]
    for batch, *rows in zip(whole, *parts, strict=False):
        assert torch.equal(batch.tokens, torch.cat([part.tokens for part in rows]))
        assert torch.equal(batch.targets, torch.cat([part.targets for part in rows]))
        assert batch.tokens.shape == (8, 7)


@pytest.mark.parametrize("window", [1, 5, 100])
def test_resumes_anywhere_with_any_number_of_processes(dataset, window):
    """Stopped after every batch of more than two epochs: 4 processes save, 1 goes on, and back."""
    settings = SETTINGS | {"window": window}
    whole = StreamedBatches(dataset, encode, **settings)
    expected, states = [], []
    for batch in islice(whole, 80):
        expected.append(batch.tokens.tolist())
        states.append(whole.state_dict())
    assert max(json.loads(state)["epoch"] for state in states[-1].values()) >= 2
    for at in (0, 1, 13, 24, 25, 26, 47, 60, 72):
        four = [StreamedBatches(dataset, encode, part=(i, 4), **settings) for i in range(4)]
        for part in four:
            part.load_state_dict(states[at])
        rows = [tokens(islice(part, 2)) for part in four]
        joined = [list(chain(*same)) for same in zip(*rows, strict=True)]
        assert joined == expected[at + 1 : at + 3]

        together = {}
        for part in four:
            together |= part.state_dict()
        one = StreamedBatches(dataset, encode, **settings)
        one.load_state_dict(together)
        assert tokens(islice(one, 2)) == expected[at + 3 : at + 5]


def test_the_seed_orders_the_documents(dataset):
    first, same, other = (
        tokens(islice(StreamedBatches(dataset, encode, seed=seed, **SETTINGS), 5))
        for seed in (0, 0, 1)
    )
    assert first == same != other


def test_documents_are_told_apart(dataset):
    batch = next(iter(StreamedBatches(dataset, encode, mask_documents=True, **SETTINGS)))
    for row, owners in zip(batch.tokens.tolist(), batch.documents.tolist(), strict=True):
        changes = [a != b for a, b in pairwise(owners)]
        assert changes == [token == END for token in row[1:]]


def test_refuses(dataset):
    for change, words in (
        ({"batch_size": 6}, "streams that divide"),
        ({"part": (0, 3)}, "3 processes"),
        ({"window": 0}, "window=0"),
    ):
        with pytest.raises(ValueError, match=words):
            StreamedBatches(dataset, encode, **(SETTINGS | change))
    with pytest.raises(ValueError, match="lower n_streams"):
        next(
            iter(
                StreamedBatches(
                    dataset, encode, **(SETTINGS | {"n_streams": 400, "batch_size": 400})
                )
            )
        )
    state = StreamedBatches(dataset, encode, **SETTINGS).state_dict()
    with pytest.raises(ValueError, match="keep n_streams"):
        StreamedBatches(dataset, encode, **(SETTINGS | {"n_streams": 8})).load_state_dict(state)
    with pytest.raises(ValueError, match="keep block_size"):
        StreamedBatches(dataset, encode, **(SETTINGS | {"block_size": 8})).load_state_dict(state)
