"""Modules that predict further tokens, on fixtures derived by hand.

B batch, T time, C channels, V vocabulary.
"""

import pytest
import torch

from minillm.data.packing import IGNORE
from minillm.model.config import Latent, MoE, llama_config
from minillm.model.mtp import mtp_logits, mtp_targets
from minillm.model.transformer import Transformer


def tiny_model() -> Transformer:
    """C = V = 2, one module, whose block adds nothing, so that everything can be done by hand."""
    config = llama_config(2, d_model=2, n_layers=1, n_heads=1, n_future=1, norm_eps=1e-12)
    model = Transformer(config)
    module = model.mtp[0]
    with torch.no_grad():
        model.embedding.weight.copy_(torch.tensor([[3.0, 4.0], [6.0, -8.0]]))
        model.unembed.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        module.project.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 1.0, 0.0]]))
        module.hidden_norm.weight.copy_(torch.tensor([1.0, 2.0]))
        module.token_norm.weight.copy_(torch.tensor([5.0, 0.5]))
        module.norm.weight.copy_(torch.tensor([2.0, 1.0]))
        module.block.attention.out.weight.zero_()
        module.block.mlp.down.weight.zero_()
    return model


def test_one_module_by_hand():
    """norm(x) = x / √mean(x²), times its weights; the block adds nothing.

    Position 0 has h = (1, 7): mean square 25, so norm(h) = (0.2, 1.4) · (1, 2) = (0.2, 2.8). The
    next token is 1, embedding (6, −8): mean square 50, so e = (6, −8)/√50 · (5, 0.5)
    = (4.242641, −0.565685). Projected: (0.2 + 2·e₂, 2.8 + e₁) = (−0.931371, 7.042641). Mean square
    (0.867452 + 49.598787)/2 = 25.233119, root 5.023258: normed (−0.185412, 1.402007) · (2, 1)
    = (−0.370823, 1.402007). Output rows (1, 0) and (1, 1): logits (−0.370823, 1.031184).

    Position 1 has h = (−7, 1): norm (−1.4, 0.2) · (1, 2) = (−1.4, 0.4). The next token is 0,
    (3, 4): mean square 12.5, e = (3, 4)/√12.5 · (5, 0.5) = (4.242641, 0.565685). Projected:
    (−1.4 + 1.131371, 0.4 + 4.242641) = (−0.268629, 4.642641). Mean square (0.072162 + 21.554112)/2
    = 10.813137, root 3.288333: (−0.081692, 1.411852) · (2, 1) = (−0.163383, 1.411852): logits
    (−0.163383, 1.248469). The last position has no next token: T − 1 = 2 rows.
    """
    hidden = torch.tensor([[[1.0, 7.0], [-7.0, 1.0], [9.0, 9.0]]])
    (logits,) = mtp_logits(tiny_model(), hidden, torch.tensor([[0, 1, 0]]))
    expected = torch.tensor([[[-0.370823, 1.031184], [-0.163383, 1.248469]]])
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-6)


def test_targets_by_hand():
    """Tokens 10 11 12 | 13 14 15 16, then 17; the model's targets are one token later.

    Module 1 at position i predicts token i + 2: 12 13 14 15 16 17. Position 0 is in the first
    document and so is the position (1) whose next token it predicts: 12 counts. Position 1
    predicts 13, the next token of position 2, of its own document: it counts, as it does in the
    model's own targets. Position 2 would need the token behind position 3: another document.
    Module 2 predicts token i + 3; positions 1 and 2 reach into the other document.
    """
    targets = torch.tensor([[11, 12, 13, 14, 15, 16, 17]])
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    assert mtp_targets(targets, 1).tolist() == [[12, 13, 14, 15, 16, 17]]
    assert mtp_targets(targets, 1, documents).tolist() == [[12, 13, IGNORE, 15, 16, 17]]
    assert mtp_targets(targets, 2, documents).tolist() == [[13, IGNORE, IGNORE, 16, 17]]


def test_targets_that_the_model_ignores_stay_ignored():
    targets = torch.tensor([[IGNORE, IGNORE, 5, 6], [1, 2, IGNORE, 4]])
    assert mtp_targets(targets, 1).tolist() == [[IGNORE, 5, 6], [2, IGNORE, 4]]
    assert mtp_targets(targets, 3).tolist() == [[6], [4]]


def deeper_model() -> Transformer:
    config = llama_config(
        23, d_model=16, n_layers=2, n_heads=2, head_dim=6, n_future=2, norm_eps=0.1,
        latent=Latent(kv_rank=8, rope_dim=4),
        moe=MoE(
            4, 2, d_expert=8, d_shared=8, scores="sigmoid", balance_bias=True, dense_layers=(0,)
        ),
    )  # fmt: skip
    random = torch.Generator().manual_seed(0)
    model = Transformer(config)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.4 + 0.1)
    return model


def test_a_module_sees_the_tokens_it_may_and_none_beyond():
    """Change token 5: module 1 moves from position 4 on (it reads token i + 1), module 2 from 3."""
    model = deeper_model()
    tokens = torch.randint(23, (3, 9), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 23
    before = mtp_logits(model, model.hidden(tokens), tokens)
    after = mtp_logits(model, model.hidden(changed), changed)
    assert [logits.shape for logits in before] == [(3, 8, 23), (3, 7, 23)]
    for k, (a, b) in enumerate(zip(before, after, strict=True), start=1):
        moved = (a - b).abs().amax((0, 2))
        assert (moved[: 5 - k] < 1e-5).all() and (moved[5 - k :] > 1e-3).all()


def test_documents_are_kept_apart_inside_a_module():
    """Another first document must not move what counts in the second."""
    model = deeper_model()
    tokens = torch.randint(23, (3, 9), generator=torch.Generator().manual_seed(1))
    documents = torch.tensor([[0] * 4 + [1] * 5] * 3)
    changed = tokens.clone()
    changed[:, :4] = (changed[:, :4] + 1) % 23
    logits = [
        mtp_logits(model, model.hidden(t, documents=documents), t, documents)
        for t in (tokens, changed)
    ]
    for one, other in zip(*logits, strict=True):
        torch.testing.assert_close(one[:, 4:], other[:, 4:])


def test_the_model_without_its_modules_is_the_same_model():
    model = deeper_model()
    tokens = torch.randint(23, (3, 9), generator=torch.Generator().manual_seed(1))
    logits = model(tokens)
    with torch.no_grad():
        for parameter in model.mtp.parameters():
            parameter.fill_(torch.nan)
    torch.testing.assert_close(model(tokens), logits)


def test_gradients_reach_the_model_and_every_module():
    model = deeper_model()
    tokens = torch.randint(23, (3, 9), generator=torch.Generator().manual_seed(1))
    for logits in mtp_logits(model, model.hidden(tokens), tokens):
        logits.logsumexp(-1).sum().backward(retain_graph=True)
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_refusals():
    plain = Transformer(llama_config(5, d_model=8, n_heads=2, n_layers=1))
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="n_future=0"):
        mtp_logits(plain, plain.hidden(tokens), tokens)
    model = deeper_model()
    with pytest.raises(ValueError, match="longer text"):
        mtp_logits(model, model.hidden(tokens[:, :2]), tokens[:, :2])
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k={k}"):
            mtp_targets(tokens, k)
