"""Wrong versions of lesson 04's solutions: (correct text, wrong text, words of the message)."""

MUTANTS = {
    "single_head": [
        ("math.sqrt(q.shape[-1])", "q.shape[-1]", "divided by D, not by √D"),
        (" / math.sqrt(q.shape[-1])", "", "not divided by √D"),
        ("math.sqrt(q.shape[-1])", "math.sqrt(x.shape[-1])", "taken of the channels C"),
        ("softmax(dim=-1)", "softmax(dim=-2)", "softmax runs over the queries"),
        ("q @ k.mT", "k @ q.mT", "the transpose of q·k"),
        ("if causal:", "if True:", "ignores causal"),
        ("if w_q.shape[-1] != w_k.shape[-1]:", "if False:", "raise ValueError"),
    ],
    "multi_head": [
        ("(three h d) -> three", "(three d h) -> three", r"cut the channels as \(d h\)"),
        ("b t (h d)", "b t (d h)", "your output is"),
        ("@ w_out.T", "@ w_out", "not with its transpose"),
        (" @ w_out.T", "", "forgot w_out"),
        ("math.sqrt(q.shape[-1])", "math.sqrt(C)", "each head has only D"),
        ("if C % n_heads:", "if False:", "raise ValueError"),
    ],
    "layer_norm": [
        (", correction=0", "", "divides by C − 1"),
        ("(variance + eps).sqrt()", "(variance.sqrt() + eps)", "outside the square root"),
        ("dim=-1", "dim=1", "statistics run over time"),
        ("(x - mean)", "x", "do not subtract the mean"),
        (" * weight + bias", "", "forgot weight and bias"),
    ],
    "ragged_mask": [
        ("mask = mask | torch.eye(T).bool()", "", "their softmax is NaN"),
        ("return mask[:, None]", "return mask", "lacks the axis of the heads"),
        ("return mask[:, None]", "return ~mask[:, None]", "upside down"),
        (" & torch.ones(T, T).tril().bool()", "", "look into the future"),
        ("real[:, :, None] & ", "", "should see only themselves"),
        ("if lengths.min() < 1:", "if False:", "raise ValueError"),
    ],
    "count_parameters": [
        ("return V * C", "return 2 * V * C", "it is tied to the embedding"),
        (" + T * C", "", "forgot the position embedding"),
        (" + 2 * C\n", "\n", "forgot the last norm"),
        ("attention + mlp + norms", "attention + mlp", "forgot the two norms"),
        (" + (C * C + C)", "", "the output projection is one too"),
    ],
    "fixed_attention": [
        (
            "mixed.transpose(1, 2).reshape(B, T, C)",
            "mixed.reshape(B, T, C)",
            "joined without moving time back",
        ),
        ("reshape(B, T, n_heads, D).transpose(1, 2)", "reshape(B, n_heads, T, D)", "cut wrongly"),
        (
            'scores = scores.masked_fill(~past, float("-inf"))',
            "",
            "your output is",
        ),
    ],
    "saturation": [
        ("amax(dim=-1).mean()", "mean()", "always 1/64"),
        ("if scaled:", "if not scaled:", "the wrong way round"),
        (".softmax(dim=-1)", "", "largest score, before the softmax"),
        (", generator) > 0.5", ", generator) > 0.35", "not yet over one half"),
        ('remedy = "b"', 'remedy = "a"', "a larger D saturates all the same"),
        ('remedy = "b"', 'remedy = "c"', "does not help where the gradient is zero"),
    ],
}
