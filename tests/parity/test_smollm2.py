"""SmolLM2 from its GGUF file: the same model as the one `transformers` reads from that file.

Their reader and ours share no line, so a wrong row order, rotation or norm shows in the logits.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from minillm.data import assets, corpora
from minillm.infer.engine import generate
from minillm.infer.sampling import Sampler
from minillm.model import hf


@pytest.fixture(scope="module")
def ours():
    model, tokenizer = hf.smollm2()
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def theirs():
    path = assets.path("smollm2")
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, attn_implementation="eager", dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def texts(ours):
    """The first 48 tokens of three articles: (3, 48)."""
    articles = corpora.wikipedia()["test"]["text"]
    rows = [ours[1].encode(text)[:48] for text in articles]
    return torch.tensor([row for row in rows if len(row) == 48][:3])


@torch.no_grad()
def test_logits_and_perplexity(ours, theirs, texts):
    mine, reference = ours[0](texts), theirs(texts).logits
    torch.testing.assert_close(mine, reference, atol=2e-3, rtol=1e-4)
    nats = [
        F.cross_entropy(logits[:, :-1].flatten(0, 1), texts[:, 1:].flatten()).item()
        for logits in (mine, reference)
    ]
    assert nats[0] == pytest.approx(nats[1], abs=1e-4)
    assert nats[0] < 4, "a model that reads English is far below ln 49,152 = 10.8"


@torch.no_grad()
def test_greedy_text(ours, theirs, texts):
    """Prompts of different lengths in one batch of ours; one at a time in theirs."""
    model, tokenizer = ours
    prompts = [texts[row, :n].tolist() for row, n in enumerate((17, 30, 9))]
    written = generate(model, prompts, max_new_tokens=12, sampler=Sampler(temperature=0))
    for prompt, mine in zip(prompts, written, strict=True):
        out = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None,
            pad_token_id=0, attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        )  # fmt: skip
        assert mine == out[0, len(prompt) :].tolist(), tokenizer.decode(mine)
