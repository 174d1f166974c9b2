"""Speculative decoding keeps the distribution exactly, whoever guesses.

B batch, N drafts, V vocabulary.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import randomised, rng

from minillm.adapt.prune import drop_layers
from minillm.infer.drafters import (
    DraftModel,
    MTPDrafter,
    NGramDrafter,
    PromptLookup,
    follow_up,
    n_common,
)
from minillm.infer.engine import generate
from minillm.infer.sampling import Sampler
from minillm.infer.speculative import (
    Drafts,
    Round,
    acceptance,
    expected_speedup,
    expected_tokens,
    rounds,
    speculate,
    verify,
)
from minillm.model.cache import KVCache
from minillm.model.config import gpt2_config, llama_config
from minillm.model.ngram import NGram
from minillm.model.transformer import Transformer

GREEDY = Sampler(temperature=0)
V = 19


def random_model(config, seed=0, scale=0.3):
    return randomised(Transformer(config), seed + 1, scale)


@pytest.fixture(scope="module", params=["gpt2", "llama", "window"])
def model(request):
    size = {"d_model": 24, "n_layers": 3, "n_heads": 4, "max_length": 64, "n_future": 2}
    if request.param == "gpt2":
        return random_model(gpt2_config(V, **size, tie_embeddings=False))
    window = 5 if request.param == "window" else None
    return random_model(llama_config(V, **size, n_kv_heads=2, window=window))


def drafters(model):
    line = torch.randint(V, (400,), generator=rng(5))
    return {
        "itself": DraftModel(model),
        "fewer layers": DraftModel(drop_layers(model, [0])),
        "counts": NGramDrafter(NGram(3, V, add_k=0.1, weights=[0.2, 0.3, 0.5]).fit(line)),
        "look-up": PromptLookup(),
        "modules": MTPDrafter(model, window=6),
    }


KINDS = ["itself", "fewer layers", "counts", "look-up", "modules"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", [[3, 1, 4, 1, 5, 9, 2, 6], [7], [2, 2]])
def test_greedy_text_is_the_models_own(model, kind, prompt):
    drafter = drafters(model)[kind]
    [expected] = generate(model, [prompt], max_new_tokens=40, sampler=GREEDY)
    for n_drafts in (1, 2, 5):  # one drafter serves one text after the other
        told = speculate(
            model, prompt, drafter, max_new_tokens=40, n_drafts=n_drafts, sampler=GREEDY
        )
        assert told == expected


def test_a_model_that_drafts_for_itself_is_always_right(model):
    told = list(
        rounds(model, [3, 1, 4], DraftModel(model), max_new_tokens=20, n_drafts=4, sampler=GREEDY)
    )
    assert [len(r.tokens) for r in told] == [5, 5, 5, 5]
    assert all(r.drafts == r.tokens[:4] and r.n_kept == 4 for r in told)


def test_a_draft_model_forgets_what_was_refused(model):
    """Its guesses are those of a drafter that never saw the refused ones."""
    old, new = DraftModel(model), DraftModel(model)
    old.start(30, GREEDY, None)
    states = torch.zeros(0, 24)
    with torch.no_grad():
        refused = old.propose([3, 1, 4], 4, states).tokens
        for text in ([3, 1, 4, (refused[0] + 1) % V], [3, 1, 4, *refused, 7], [3, 1], [9]):
            new.start(30, GREEDY, None)
            guesses = old.propose(text, 4, states)
            fresh = new.propose(text, 4, states)
            assert guesses.tokens == fresh.tokens
            assert torch.allclose(guesses.probabilities, fresh.probabilities)


def test_a_stop_token_ends_the_text_wherever_it_stands(model):
    prompt = [3, 1, 4]
    [free] = generate(model, [prompt], max_new_tokens=40, sampler=GREEDY)
    for stop in set(free):
        for n_drafts in (1, 3, 6):
            settings = {"max_new_tokens": 40, "stop_tokens": [stop], "sampler": GREEDY}
            told = speculate(model, prompt, DraftModel(model), n_drafts=n_drafts, **settings)
            assert told == generate(model, [prompt], **settings)[0] == free[: free.index(stop)]


def exact(p, q, n_grid):
    """Distribution of the first token that `verify` lets through, summed over all randomness.

    With p and q in multiples of 1/8 everything it decides changes only at multiples of
    1/n_grid, so a grid of that many random numbers stands for all of them.
    """
    grid = (torch.arange(n_grid, dtype=torch.float64) + 0.5) / n_grid
    first, second = (u.flatten() for u in torch.meshgrid(grid, grid, indexing="ij"))
    B, total = len(first), torch.zeros(len(p), dtype=torch.float64)
    for token, chance in enumerate(q.tolist()):
        n_kept, after = verify(
            torch.stack([p, p]).expand(B, -1, -1),
            q.expand(B, 1, -1),
            torch.full((B, 1), token),
            torch.stack([first, second], dim=1),
        )
        shown = torch.where(n_kept == 1, token, after)
        total += chance * torch.bincount(shown, minlength=len(p)) / B
    return total


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([4, 2, 2], [2, 2, 4]),
        ([1, 1, 6], [4, 4, 0]),  # nothing of the likeliest token is ever proposed
        ([8, 0, 0], [2, 2, 4]),  # greedy
        ([0, 3, 5], [8, 0, 0]),  # a guess that is impossible
        ([2, 3, 3], [2, 3, 3]),
        ([1, 4, 3], [4, 0, 4]),
    ],
)
def test_the_distribution_is_exact_by_enumeration(p, q):
    p, q = (torch.tensor(x, dtype=torch.float64) / 8 for x in (p, q))
    # Kept up to p/q, a multiple of 1/8; replaced by shares of p − q, multiples of 1/k, k ≤ 8.
    assert torch.allclose(exact(p, q, 840), p, atol=1e-12)


def test_whole_texts_have_the_exact_distribution():
    """Three tokens of a vocabulary of three, two drafts: every branch weighed by its probability.

    The chains p and q differ after every context. What `verify` does on each branch is read off
    from the enumeration above; here its places in the text are what is tested.
    """
    texts = list(itertools.product(range(3), repeat=3))
    p = {c: torch.rand(3, generator=rng(i), dtype=torch.float64) for i, c in enumerate(contexts())}
    q = {c: torch.rand(3, generator=rng(99 + i)).double() for i, c in enumerate(contexts())}
    p, q = ({c: x / x.sum() for c, x in t.items()} for t in (p, q))
    n_samples = 40_000
    counts, generator = torch.zeros(27, dtype=torch.float64), rng(1)
    for a, b in itertools.product(range(3), repeat=2):  # all drafts, weighed exactly
        weight = q[()][a] * q[(a,)][b]
        target = torch.stack([p[()], p[(a,)], p[(a, b)]]).expand(n_samples, -1, -1)
        draft = torch.stack([q[()], q[(a,)]]).expand(n_samples, -1, -1)
        uniforms = torch.rand(n_samples, 3, generator=generator, dtype=torch.float64)
        tokens = torch.tensor([[a, b]]).expand(n_samples, -1)
        n_kept, after = verify(target, draft, tokens, uniforms)
        for kept in range(3):
            for token in range(3):
                share = ((n_kept == kept) & (after == token)).double().mean()
                start = ((a, b)[:kept]) + (token,)
                for rest in itertools.product(range(3), repeat=3 - len(start)):
                    text = start + rest  # what the next round adds comes from p itself
                    chance = math.prod(p[text[:i]][text[i]].item() for i in range(len(start), 3))
                    counts[texts.index(text)] += weight * share * chance
    expected = torch.tensor(
        [math.prod(p[t[:i]][t[i]].item() for i in range(3)) for t in texts], dtype=torch.float64
    )
    assert counts.sum().item() == pytest.approx(1)
    assert (counts - expected).abs().max() < 4e-3  # 5 standard errors of the sampled uniforms


def contexts():
    return [c for n in range(3) for c in itertools.product(range(3), repeat=n)]


def chi_squared_z(counts, p):
    """Pearson's χ² of counts against p, in standard deviations from its mean; rare ones pooled."""
    expected = p * counts.sum()
    rare = expected < 10
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    return ((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)).item()


def test_a_large_vocabulary_passes_a_chi_squared_test():
    B, size = 40_000, 300
    p, q = (2 * torch.randn(2, size, generator=rng(3))).double().softmax(-1)
    tokens = torch.multinomial(q, B, replacement=True, generator=rng(4))
    uniforms = torch.rand(B, 2, generator=rng(5), dtype=torch.float64)
    n_kept, after = verify(p.expand(B, 2, -1), q.expand(B, 1, -1), tokens[:, None], uniforms)
    shown = torch.where(n_kept == 1, tokens, after)
    assert abs(chi_squared_z(torch.bincount(shown, minlength=size).double(), p)) < 4
    assert n_kept.double().mean().item() == pytest.approx(acceptance(p, q).item(), abs=0.01)
    wrong = torch.where(n_kept == 1, tokens, torch.multinomial(p, B, True, generator=rng(6)))
    assert chi_squared_z(torch.bincount(wrong, minlength=size).double(), p) > 20, "sees a mistake"


@pytest.mark.parametrize("kind", ["fewer layers", "counts", "look-up", "modules"])
def test_sampled_texts_have_the_models_distribution(kind):
    """Two new tokens of a vocabulary of 5, against the model's own probabilities."""
    config = llama_config(5, d_model=16, n_layers=2, n_heads=2, max_length=16, n_future=2)
    model, prompt, n = random_model(config, seed=2, scale=0.5), [4, 1, 4], 800
    sampler, generator = Sampler(temperature=1.3, top_k=4), rng(7)
    drafter = {
        "fewer layers": DraftModel(drop_layers(model, [0])),
        "counts": NGramDrafter(NGram(2, 5, add_k=1.0).fit([0, 1, 2, 3, 4, 0, 2, 4, 1, 1])),
        "look-up": PromptLookup(),
        "modules": MTPDrafter(model),
    }[kind]
    counts = torch.zeros(25, dtype=torch.float64)
    for _ in range(n):
        a, b = speculate(
            model, prompt, drafter, max_new_tokens=2, sampler=sampler, generator=generator
        )
        counts[5 * a + b] += 1
    with torch.no_grad():
        first = sampler.probabilities(model(torch.tensor([prompt]))[:, -1])[0]
        second = torch.cat(
            [sampler.probabilities(model(torch.tensor([[*prompt, a]]))[:, -1]) for a in range(5)]
        )
    assert abs(chi_squared_z(counts, (first[:, None] * second).flatten().double())) < 4


def test_after_a_refusal_nothing_is_kept():
    p = F.one_hot(torch.tensor([[0, 1, 2]]), 4).double()
    q = torch.full((1, 2, 4), 0.25).double()
    n_kept, token = verify(p, q, torch.tensor([[3, 1]]), torch.zeros(1, 3).double())
    assert (n_kept.item(), token.item()) == (0, 0)
    n_kept, token = verify(p, q, torch.tensor([[0, 3]]), torch.zeros(1, 3).double())
    assert (n_kept.item(), token.item()) == (1, 1)
    n_kept, token = verify(p, q, torch.tensor([[0, 1]]), torch.zeros(1, 3).double())
    assert (n_kept.item(), token.item()) == (2, 2)


def test_rounding_that_leaves_nothing_to_draw_from():
    p = torch.tensor([[[0.5, 0.5 - 1e-7], [1.0, 0.0]]])
    q = torch.tensor([[[0.5 + 1e-7, 0.5]]])
    n_kept, token = verify(p, q, torch.tensor([[0]]), torch.tensor([[1 - 1e-9, 0.9]]).double())
    assert (n_kept.item(), token.item()) == (0, 1)


def test_the_modules_guess_what_they_guess_in_training(model):
    from minillm.model.mtp import mtp_logits

    prompt = [3, 1, 4, 1, 5]
    drafter = MTPDrafter(model)
    drafter.start(20, GREEDY, None)
    with torch.no_grad():
        states = model.hidden(torch.tensor([prompt[:-1]]))
        first = drafter.propose(prompt[:3], 2, states[0, :2])
        drafts = drafter.propose(prompt, 2, states[0, 2:])
        assert len(first.tokens) == len(drafts.tokens) == 2
        text = torch.tensor([[*prompt, *drafts.tokens]])
        padded = F.pad(states, (0, 0, 0, 3))  # what the modules do not reach
        one, two = mtp_logits(model, padded, text)
    assert drafts.tokens == [one[0, 3].argmax().item(), two[0, 3].argmax().item()]


def test_prompt_lookup_takes_the_longest_and_latest_match():
    assert follow_up([5, 1, 2, 3, 1, 2], 2, longest=3) == [3, 1]
    assert follow_up([1, 2, 7, 0, 2, 8, 1, 2], 1, longest=3) == [7], "longer beats later"
    assert follow_up([1, 2, 7, 0, 2, 8, 1, 2], 1, longest=1) == [8]
    assert follow_up([1, 2, 3], 4, longest=3) == []
    assert follow_up([7, 7, 7], 4, longest=2) == [7]
    assert follow_up([7], 4, longest=2) == []


def test_a_cache_goes_back(model):
    tokens = torch.randint(V, (2, 9), generator=rng(8))
    cache = KVCache(model.config, 2, 12)
    with torch.no_grad():
        for end in (5, 9):
            new = tokens[:, cache.lengths[0] : end]
            model(new, cache=cache)
            cache.advance(new.shape[1])
            if end == 5:
                cache.rewind(3)
        logits = model(tokens[:, -1:], cache=cache)
        assert torch.allclose(
            logits, model(torch.cat([tokens, tokens[:, -1:]], 1))[:, -1:], atol=1e-5
        )
    cache.advance([0, 2])
    assert cache.positions(1).tolist() == [[9], [11]]
    cache.rewind(1)
    assert cache.lengths.tolist() == [8, 10] and cache.positions(1).tolist() == [[8], [10]]
    for n in (-1, 9):
        with pytest.raises(ValueError, match="rewind"):
            cache.rewind(n)


def test_expected_tokens_is_the_mean_of_a_race():
    """Drafts are kept in a row with probability r each: simulated, and by the closed form."""
    kept = (torch.rand(200_000, 4, generator=rng()) < 0.7).long().cumprod(1).sum(1)
    assert expected_tokens(0.7, 4) == pytest.approx(1 + kept.double().mean().item(), rel=0.005)
    assert expected_tokens(0.7, 4) == pytest.approx((1 - 0.7**5) / 0.3)
    assert expected_tokens(1.0, 4) == 5
    assert expected_speedup(0.7, 4, 0.1) == pytest.approx((1 - 0.7**5) / 0.3 / 1.4)
    assert n_common([1, 2, 3], [1, 2, 4, 5]) == 2 and n_common([], [1]) == 0
    assert Round([1, 2, 3], [1, 2, 9]).n_kept == 2 and Round([], [4]).n_kept == 0


def test_what_is_refused(model):
    settings = {"max_new_tokens": 4}
    with pytest.raises(ValueError, match="n_drafts=0"):
        speculate(model, [1], PromptLookup(), n_drafts=0, **settings)
    with pytest.raises(ValueError, match="repetition_penalty"):
        speculate(model, [1], PromptLookup(), sampler=Sampler(repetition_penalty=1.2), **settings)
    with pytest.raises(ValueError, match="empty"):
        speculate(model, [], PromptLookup(), **settings)
    with pytest.raises(ValueError, match="max_length"):
        speculate(model, [1], PromptLookup(), max_new_tokens=64)
    with pytest.raises(ValueError, match="longest"):
        PromptLookup(longest=0)
    plain = Transformer(llama_config(V, d_model=8, n_layers=1, n_heads=1))
    with pytest.raises(ValueError, match="n_future"):
        MTPDrafter(plain)
    assert Drafts([]).probabilities is None
