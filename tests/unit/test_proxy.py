"""Proxy tuning equals its formula, with caches and without."""

import pytest
import torch

from minillm.adapt.proxy import proxy_generate, proxy_logits
from minillm.infer.engine import generate
from minillm.infer.sampling import Sampler
from minillm.model.config import gpt2_config, llama_config
from minillm.model.transformer import Transformer

GREEDY, PROMPT = Sampler(temperature=0), [3, 1, 4]


def models():
    large = llama_config(31, d_model=24, n_layers=2, n_heads=2, d_ff=20, max_length=12)
    small = gpt2_config(31, d_model=12, n_layers=1, n_heads=2, d_ff=20, max_length=12)
    seeds = enumerate((large, small, small))
    return [Transformer(c, torch.Generator().manual_seed(i)) for i, c in seeds]


def test_the_formula_by_hand():
    """The small model came to like token 1 by 2 more, so the large one does by half of that."""
    large, tuned, untuned = (torch.tensor(x) for x in ([1.0, 1.0], [0.0, 5.0], [0.0, 3.0]))
    assert proxy_logits(large, tuned, untuned, 0.5).tolist() == [1.0, 2.0]
    ratio = large.softmax(0) * tuned.softmax(0) / untuned.softmax(0)
    expected = ratio / ratio.sum()
    torch.testing.assert_close(proxy_logits(large, tuned, untuned).softmax(0), expected)


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.5])
def test_generation_takes_the_best_token_of_the_formula(strength):
    trio = models()
    new = proxy_generate(*trio, PROMPT, max_new_tokens=9, strength=strength, sampler=GREEDY)
    assert len(new) == 9
    logits = [model(torch.tensor([PROMPT + new])) for model in trio]
    best = (logits[0] + strength * (logits[1] - logits[2])).argmax(-1)[0]
    assert best[len(PROMPT) - 1 : -1].tolist() == new


def test_it_stops_and_without_strength_is_the_large_model():
    trio = models()
    (alone,) = generate(trio[0], [PROMPT], max_new_tokens=6, sampler=GREEDY)
    settings = {"max_new_tokens": 6, "sampler": GREEDY, "strength": 0}
    assert proxy_generate(*trio, PROMPT, **settings) == alone
    stopped = proxy_generate(*trio, PROMPT, **settings, stop_tokens=[alone[-1]])
    assert stopped == alone[: alone.index(alone[-1])]


def test_other_vocabularies_and_long_prompts_are_refused():
    large, tuned, _ = models()
    other = Transformer(gpt2_config(30, d_model=12, n_layers=1, n_heads=2, max_length=12))
    with pytest.raises(ValueError, match=r"\(1, 31\), \(1, 31\), \(1, 30\): the three models must"):
        proxy_generate(large, tuned, other, PROMPT, max_new_tokens=2)
    with pytest.raises(ValueError, match="max_length is 12"):
        proxy_generate(large, tuned, tuned, PROMPT, max_new_tokens=10)
