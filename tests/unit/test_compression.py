"""Pruning, low rank and distillation, against what can be computed another way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from minillm.adapt.distill import (
    agreement,
    distillation_loss,
    distilling,
    forward_kl,
    matching,
    own_texts,
    reverse_kl,
    written,
)
from minillm.adapt.low_rank import factor, factorised, rank_for_error, worthwhile_rank
from minillm.adapt.prune import (
    apply_masks,
    drop_heads,
    drop_layers,
    hold_masks,
    keep_share,
    keep_two_of_four,
    magnitude,
    wanda,
)
from minillm.data.packing import IGNORE, Batch
from minillm.infer.engine import generate
from minillm.infer.sampling import Sampler
from minillm.model.config import gpt2_config, llama_config
from minillm.model.transformer import Transformer
from minillm.train.loop import accumulate_gradients, train

TOKENS = torch.randint(0, 31, (3, 7), generator=torch.Generator().manual_seed(0))


def randomised(config):
    model = Transformer(config)
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.3
    return model


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 8, generator=generator)
    x = torch.randn(30, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
    return weight, x


def test_the_lowest_scores_go():
    """By hand: of each row the two smallest; of the whole, the four smallest."""
    weight = torch.tensor([[1.0, -8.0, 3.0, -2.0], [5.0, -6.0, 7.0, 4.0]])
    assert keep_share(magnitude(weight), 0.5).tolist() == [
        [False, True, True, False],
        [False, True, True, False],
    ]
    assert keep_share(magnitude(weight), 0.5, by_row=False).tolist() == [
        [False, True, False, False],
        [True, True, True, False],
    ]
    assert keep_share(magnitude(weight), 0.7).sum(1).tolist() == [2, 2]  # ⌊2.8⌋ dropped


def test_magnitude_agrees_with_torch(problem):
    layer = nn.Linear(8, 6)
    layer.weight.data = problem[0].clone()
    l1_unstructured(layer, "weight", 24)
    mask = keep_share(magnitude(problem[0]), 0.5, by_row=False)
    torch.testing.assert_close(layer.weight_mask.bool(), mask)


def test_wanda_weighs_by_the_norm_of_the_inputs(problem):
    weight, x = problem
    expected = weight.abs() * x.norm(dim=0)
    torch.testing.assert_close(wanda(weight, x.T @ x), expected)


def test_two_of_four_stay(problem):
    mask = keep_two_of_four(magnitude(problem[0]))
    assert (mask.view(-1, 4).sum(1) == 2).all()
    kept = problem[0].abs().view(-1, 4).where(mask.view(-1, 4), 0.0).sum(1)
    torch.testing.assert_close(kept, problem[0].abs().view(-1, 4).topk(2).values.sum(1))
    with pytest.raises(ValueError, match="6 columns: expected a multiple of 4"):
        keep_two_of_four(torch.zeros(2, 6))


def test_masks_are_applied_or_refused(problem):
    model = nn.Sequential(nn.Linear(8, 6))
    mask = keep_share(magnitude(model[0].weight), 0.25)
    apply_masks(model, {"0": mask})
    assert ((model[0].weight == 0) == ~mask).all()
    with pytest.raises(ValueError, match=r"mask of 0 is torch.float32 .* expected bool"):
        apply_masks(model, {"0": mask.float()})
    with pytest.raises(ValueError, match=r"sparsity=1\.5"):
        keep_share(mask.float(), 1.5)


def test_pruned_weights_stay_away_while_the_others_learn():
    model = randomised(gpt2_config(31, d_model=12, n_layers=1, n_heads=3, max_length=9))
    name = "blocks.0.mlp.up"
    mask = keep_share(magnitude(model.get_submodule(name).weight), 0.5)
    handles = hold_masks(model, {name: mask})
    batch = Batch(TOKENS, TOKENS.roll(-1, 1))
    before = model.get_submodule(name).weight.detach().clone()
    train(model, [batch] * 3, steps=3, lr=0.1, weight_decay=0.5, progress=False)
    after = model.get_submodule(name).weight.detach()
    assert (after[~mask] == 0).all()
    assert (after[mask] != before[mask]).all()
    for handle in handles:
        handle.remove()
    train(model, [batch], steps=1, lr=0.1, progress=False)
    assert (model.get_submodule(name).weight[~mask] != 0).any()


@pytest.mark.parametrize("make", [gpt2_config, llama_config])
def test_dropping_a_layer_equals_skipping_it(make):
    model = randomised(make(31, d_model=12, n_layers=3, n_heads=3, max_length=9))
    smaller = drop_layers(model, [0, 2])
    assert smaller.config.n_layers == 2
    positions = torch.arange(7)
    x = model.embed(TOKENS, positions)
    view = model.view(x, positions)
    for i in (0, 2):
        x = model.blocks[i](x, view)
    torch.testing.assert_close(smaller(TOKENS), model.logits(model.norm(x)))
    with pytest.raises(ValueError, match="layers from 0 to 2"):
        drop_layers(model, [3])


@pytest.mark.parametrize("make, n_kv_heads", [(gpt2_config, 4), (llama_config, 2)])
def test_dropping_heads_equals_silencing_them(make, n_kv_heads):
    """A head whose columns of the output matrix are zero writes nothing."""
    config = make(31, d_model=16, n_layers=2, n_heads=4, n_kv_heads=n_kv_heads, max_length=9)
    model = randomised(config)
    smaller = drop_heads(model, [1])
    group = 4 // n_kv_heads
    assert (smaller.config.n_heads, smaller.config.n_kv_heads) == (group, 1)
    assert smaller.n_parameters() < model.n_parameters()
    for block in model.blocks:
        silent = torch.ones(4, 4, dtype=torch.bool)
        silent[group : 2 * group] = False
        block.attention.out.weight.data[:, silent.flatten()] = 0
    torch.testing.assert_close(smaller(TOKENS), model(TOKENS))
    with pytest.raises(ValueError, match="expected heads from 0"):
        drop_heads(model, [])


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_error_of_a_factorisation_is_the_discarded_spectrum(problem, rank):
    weight, _ = problem
    left, right = factor(weight, rank)
    assert (left.shape, right.shape) == ((6, rank), (rank, 8))
    error = (weight - left @ right).square().sum()
    discarded = torch.linalg.svdvals(weight)[rank:].square().sum()
    torch.testing.assert_close(error, discarded, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_knowing_the_inputs_gives_the_best_outputs(problem, rank):
    """The least output error of any matrix of that rank is the discarded spectrum of W Xᵀ."""
    weight, x = problem
    left, right = factor(weight, rank, x.T @ x)
    error = (x @ (weight - left @ right).T).square().sum()
    best = torch.linalg.svdvals(x @ weight.T)[rank:].square().sum()
    torch.testing.assert_close(error, best, rtol=1e-3, atol=1e-4)


def test_ranks_are_chosen_from_the_spectrum(problem):
    weight, _ = problem
    for error in (0.0, 0.05, 0.3, 1.0):
        rank = rank_for_error(weight, error)
        left, right = factor(weight, rank)
        reached = ((weight - left @ right).square().sum() / weight.square().sum()).item()
        assert reached <= error + 1e-6
        if rank > 1:
            fewer = torch.linalg.svdvals(weight)[rank - 1 :].square().sum() / weight.square().sum()
            assert fewer > error
    assert worthwhile_rank(6, 8) == 3  # 3 · 14 = 42 < 48, 4 · 14 = 56
    assert worthwhile_rank(4, 4) == 1  # 2 · 8 = 16 is no smaller


def test_a_factorised_layer_keeps_its_bias(problem):
    layer, (_, x) = nn.Linear(8, 6), problem
    torch.testing.assert_close(factorised(layer, 6)(x), layer(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="rank=7: expected 1 to 6"):
        factorised(layer, 7)
    with pytest.raises(ValueError, match=r"gram has shape \(6, 6\)"):
        factor(layer.weight, 2, torch.eye(6))


def test_distillation_on_two_tokens_by_hand():
    """Teacher (¾, ¼), student (½, ½), target 0, T = 1, weight ½.

    Hard: −ln ½ = ln 2. Soft: ¾ ln(¾/½) + ¼ ln(¼/½) = ¾ ln 3 − ln 2 ... = 0.130812.
    """
    student = torch.zeros(1, 1, 2)
    teacher = torch.tensor([[[3.0, 1.0]]]).log()
    loss = distillation_loss(student, teacher, torch.tensor([[0]]), temperature=1.0)
    assert loss.item() == pytest.approx(0.5 * 0.693147 + 0.5 * 0.130812, abs=1e-6)


def test_distillation_against_torch_with_masked_positions():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 5, 11, generator=generator, requires_grad=True)
    teacher = torch.randn(3, 5, 11, generator=generator)
    targets = torch.randint(0, 11, (3, 5), generator=generator)
    targets[1, 2:] = -100
    keep = targets != -100
    soft = F.kl_div(
        (student[keep] / 3).log_softmax(-1), (teacher[keep] / 3).softmax(-1), reduction="batchmean"
    )
    expected = 0.3 * F.cross_entropy(student[keep], targets[keep]) + 0.7 * 9 * soft
    loss = distillation_loss(student, teacher, targets, temperature=3.0, weight=0.7)
    torch.testing.assert_close(loss, expected)
    teacher.requires_grad_()
    taught = distillation_loss(student, teacher, targets)
    assert torch.autograd.grad(taught, teacher, allow_unused=True)[0] is None
    gradients = [torch.autograd.grad(x, student, retain_graph=True)[0] for x in (loss, expected)]
    torch.testing.assert_close(*gradients)
    nothing = distillation_loss(student, teacher, torch.full((3, 5), -100))
    assert nothing.item() == 0
    torch.testing.assert_close(reverse_kl(student, teacher), forward_kl(teacher, student.detach()))
    assert agreement(teacher, teacher, targets) == 1.0


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"temperature": 0.0}, r"temperature=0\.0"),
        ({"weight": 2.0}, r"weight=2\.0"),
        ({"teacher_logits": torch.zeros(1, 2, 4)}, "expected equal shapes"),
    ],
)
def test_distillation_refuses(changes, words):
    given = {"student_logits": torch.zeros(1, 2, 3), "teacher_logits": torch.zeros(1, 2, 3)}
    with pytest.raises(ValueError, match=words):
        distillation_loss(**{**given, "targets": torch.zeros(1, 2).long(), **changes})


@pytest.fixture
def pair():
    """A teacher and a smaller student of the same vocabulary."""
    teacher = randomised(gpt2_config(31, d_model=12, n_layers=2, n_heads=3, max_length=40))
    student = randomised(gpt2_config(31, d_model=8, n_layers=1, n_heads=2, max_length=40))
    return teacher, student


def test_what_a_model_writes_is_what_it_learns(pair):
    """Each row is a prompt, its continuation, and the end only where the model chose it."""
    teacher, _ = pair
    prompts = [[5], [7, 8, 9], [3, 4]] * 4
    settings = {"max_new_tokens": 6, "sampler": Sampler(temperature=2.0)}
    seeded = [torch.Generator().manual_seed(3) for _ in range(2)]
    batch = written(teacher, prompts, end_token=2, generator=seeded[0], **settings)
    texts = generate(teacher, prompts, stop_tokens=(2,), generator=seeded[1], **settings)
    assert {len(text) == 6 for text in texts} == {True, False}  # some end early, some are cut off
    for prompt, text, tokens, targets in zip(
        prompts, texts, batch.tokens.tolist(), batch.targets.tolist(), strict=True
    ):
        row = [*prompt, *text] + [2] * (len(text) < 6)
        assert tokens[: len(row) - 1] == row[:-1]
        learned = row[len(prompt) :]
        before, after = len(prompt) - 1, len(targets) - len(row) + 1
        assert targets == [IGNORE] * before + learned + [IGNORE] * after


def test_own_texts_come_from_the_model_as_it_is_now(pair):
    _, student = pair
    generator = torch.Generator().manual_seed(0)
    texts = own_texts(
        student, lambda: [[1]] * 3, max_new_tokens=5, end_token=2, generator=generator
    )
    next(texts)
    with torch.no_grad():  # from now on it only ever says 9
        student.unembed.weight.zero_()
        student.norm.weight.zero_()
        student.norm.bias.fill_(1.0)
        student.unembed.weight[9] = 100.0
    assert next(texts).targets.tolist() == [[9] * 5] * 3


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_matching_counts_each_position_once_and_moves_only_the_student(pair, divergence):
    teacher, student = pair
    targets = TOKENS.roll(-1, 1).index_fill(1, torch.tensor([2, 6]), IGNORE)
    batch = Batch(TOKENS, targets)
    loss, n = matching(teacher, divergence)(student, batch)
    logits = [model(TOKENS)[targets != IGNORE] for model in (student, teacher)]
    assert n == len(logits[0]) == 15
    torch.testing.assert_close(loss, divergence(*logits).sum())
    accumulate_gradients(student, [batch], matching(teacher, divergence))
    assert all(p.grad is None for p in teacher.parameters())
    assert matching(student, divergence)(student, batch)[0].item() == pytest.approx(0, abs=1e-5)


def test_distilling_is_the_summed_loss_on_what_the_teacher_thinks(pair):
    teacher, student = pair
    batch = Batch(TOKENS, TOKENS.roll(-1, 1).index_fill(1, torch.tensor([0]), IGNORE))
    loss, n = distilling(teacher, temperature=3.0, weight=0.25)(student, batch)
    mean = distillation_loss(student(TOKENS), teacher(TOKENS), batch.targets, 3.0, 0.25)
    assert n == 18
    torch.testing.assert_close(loss, 18 * mean)
