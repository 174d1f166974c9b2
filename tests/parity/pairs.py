"""A tiny model of `transformers` and ours with the same weights: what every family must pass.

Every parameter and buffer is randomised first: default initialisation (norms 1, biases 0) hides
bugs. Batches are ragged, and sizes odd. Weights travel as files, in the layout of the hub.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from minillm.model import hf
from minillm.model.cache import KVCache
from minillm.model.encoder_decoder import EncoderDecoder
from minillm.model.transformer import Transformer

VOCABULARY, LENGTHS = 61, (11, 4, 7)


def randomised(model: nn.Module) -> nn.Module:
    """The model with random numbers in every parameter and every buffer that files hold."""
    generator = torch.Generator().manual_seed(0)
    saved = model.state_dict()
    tensors = dict(model.named_parameters()) | {
        name: b for name, b in model.named_buffers() if name in saved and b.is_floating_point()
    }
    with torch.no_grad():
        for tensor in tensors.values():
            scale = 0.3 if tensor.dim() > 1 else 0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + 0.1)
    return model.eval()


def load(theirs: nn.Module, folder: Path) -> Transformer | EncoderDecoder:
    """Our model with the weights that `transformers` saves."""
    theirs.save_pretrained(folder)
    return hf.from_huggingface(folder)


def random_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def ragged(lengths: tuple[int, ...] = LENGTHS, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Tokens (B, T), padded with 0 on the right, and bool (B, T), True for the real ones."""
    tokens = random_tokens(len(lengths), max(lengths), seed=seed)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return tokens.masked_fill(~real, 0), real


def our_scores(ours: nn.Module) -> Tensor:
    """Logits (or what an encoder without a head gives) of the ragged batch, (N, V) real tokens."""
    tokens, real = ragged()
    if isinstance(ours, EncoderDecoder):
        target, written = ragged((5, 9, 2), seed=2)
        return ours(tokens, target, real.long())[written]
    if ours.config.mask == "bidirectional":
        read = ours if ours.config.mlm_head else ours.hidden
        return read(tokens, documents=real.long())[real]
    return ours(tokens)[real]


def their_scores(theirs: nn.Module) -> Tensor:
    tokens, real = ragged()
    if theirs.config.is_encoder_decoder:
        target, written = ragged((5, 9, 2), seed=2)
        masks = {"attention_mask": real.long(), "decoder_attention_mask": written.long()}
        return theirs(tokens, decoder_input_ids=target, **masks).logits[written]
    out = theirs(tokens, attention_mask=real.long())
    return (out.logits if "logits" in out else out.last_hidden_state)[real]


def their_gradients(theirs: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The gradients in `theirs`, brought to our names and shapes as weights are.

    Where a weight is w + 1 in ours, its gradient is not; so what zeros become is taken off.
    """
    holder, packed = copy.deepcopy(theirs), []
    with_gradients = dict(theirs.named_parameters())
    for factor in (1.0, 0.0):
        for name, p in holder.named_parameters():
            grad = with_gradients[name].grad
            # BERT's segment 0 is the same for all positions and part of them in ours.
            unread = grad is None or "token_type" in name
            p.data = torch.zeros_like(p) if unread else grad * factor
        for _, b in holder.named_buffers():
            b.mul_(factor) if b.is_floating_point() else None
        packed.append(load(holder, folder / f"gradients{factor}").state_dict())
    return {name: packed[0][name] - zero for name, zero in packed[1].items()}


def check_logits_and_gradients(ours: nn.Module, theirs: nn.Module, folder: Path) -> None:
    ours.requires_grad_(True)
    ours_out, theirs_out = our_scores(ours), their_scores(theirs)
    torch.testing.assert_close(ours_out, theirs_out, rtol=1e-4, atol=2e-5)

    # A random projection of the logits reaches every weight with a gradient of its own.
    direction = torch.randn(ours_out.shape, generator=torch.Generator().manual_seed(3))
    (ours_out * direction).sum().backward()
    (theirs_out * direction).sum().backward()
    expected = their_gradients(theirs, folder)
    for name, p in ours.named_parameters():
        if p.grad is None or not p.grad.any():  # an expert that no token chose, an unused head
            assert not expected[name].any(), f"{name} got no gradient"
            continue
        error = (p.grad - expected[name]).norm() / expected[name].norm()
        assert error < 1e-4, f"gradient of {name} differs by {error:.1e} of its size"


@torch.no_grad()
def check_round_trip(ours: nn.Module, theirs: nn.Module, family: str, folder: Path) -> None:
    """What we export loads in `transformers` with equal logits, and in ours with equal weights."""
    hf.to_huggingface(ours, folder, family)
    again, report = type(theirs).from_pretrained(
        folder, output_loading_info=True, attn_implementation=theirs.config._attn_implementation
    )
    if hasattr(again.config, "num_experts_per_tok"):  # their default kernel wants even sizes
        again.set_experts_implementation("eager")
    missing = {name for name in report["missing_keys"] if "pooler" not in name}
    assert not missing, f"the exported folder lacks {missing}"
    assert not report["unexpected_keys"], f"it has surplus {report['unexpected_keys']}"
    torch.testing.assert_close(their_scores(again), their_scores(theirs), rtol=1e-5, atol=1e-5)
    reloaded = hf.from_huggingface(folder).state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(reloaded[name], tensor), f"{name} changed on its way"


@torch.no_grad()
def check_cached_decoding(ours: Transformer, n_tokens: int = 19) -> None:
    """Ragged prefill, then token by token, a chunk of three, and with a row dropped."""
    tokens = random_tokens(3, n_tokens, seed=3)
    full = ours(tokens)
    cache = KVCache(ours.config, batch_size=3, max_length=n_tokens + 3)
    at = list(LENGTHS)
    prefill = ours(tokens[:, : max(at)], cache=cache)
    cache.advance(at)
    for row, n in enumerate(at):
        torch.testing.assert_close(prefill[row, :n], full[row, :n], rtol=1e-4, atol=2e-5)
    rows = torch.arange(3)
    for n_new in (1, 1, 3, 1):
        new = torch.stack([tokens[row, n : n + n_new] for row, n in zip(rows, at, strict=True)])
        logits = ours(new, cache=cache)
        cache.advance(n_new)
        for i, (row, n) in enumerate(zip(rows, at, strict=True)):
            torch.testing.assert_close(logits[i], full[row, n : n + n_new], rtol=1e-4, atol=2e-5)
        at = [n + n_new for n in at]
        if n_new == 3:
            cache.keep(torch.tensor([True, False, True]))
            rows, at = rows[[0, 2]], [at[0], at[2]]


@torch.no_grad()
def check_chunked_prefill(ours: Transformer, chunks: tuple[int, ...]) -> None:
    """Rows of equal length, read chunk by chunk."""
    tokens = random_tokens(2, sum(chunks), seed=4)
    full, cache, start = ours(tokens), KVCache(ours.config, 2, sum(chunks)), 0
    for n_new in chunks:
        logits = ours(tokens[:, start : start + n_new], cache=cache)
        cache.advance(n_new)
        expected = full[:, start : start + n_new]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-5)
        start += n_new
