"""Wrong versions of lesson 10's solutions: (correct text, wrong text, words of the message)."""

MUTANTS = {
    "decode_latent": [
        ("math.sqrt(q.shape[-1] + q_rope.shape[-1])", "math.sqrt(q.shape[-1])", "count too"),
        (") / scale", ")", "not divided by"),
        ("math.sqrt(q.shape[-1] + q_rope.shape[-1])", "math.sqrt(latents.shape[-1])", "by √R"),
        (" + q_rope @ rope_keys.T", "", "forgot the rotary part"),
        (
            "in_latent @ latents.T",
            '(torch.einsum("sr,hdr->hsd", latents, up_keys) @ q[..., None])[..., 0]',
            "keys or values for every cached token",
        ),
        ("if len(rope_keys) != len(latents):", "if False:", "ValueError"),
    ],
    "step_bias": [
        ("(loads.mean() - loads)", "(loads - loads.mean())", "signs are turned round"),
        (".sign()", "", "only the sign counts"),
        ("return bias + ", "return ", "add it to the old bias"),
        ("rate * (", "1 * (", "ignore rate"),
        ("loads.mean()", "loads[loads > 0].mean()", "idle ones count too"),
        (
            "return bias + rate * (loads.mean() - loads).sign()",
            "return bias.add_(rate * (loads.mean() - loads).sign())",
            "in place",
        ),
        ("if rate <= 0:", "if False:", "ValueError"),
    ],
    "future_targets": [
        (".where(same, IGNORE)", "", "ignore the documents"),
        (
            "documents[:, k:] == documents[:, : T - k]",
            "(documents[:, 1:] == documents[:, :-1])[:, : T - k]",
            "only with its neighbour",
        ),
        ("targets[:, k:].where", "targets[:, : T - k].where", "not moved"),
        (" == documents[:, : T", " != documents[:, : T", "drop your own"),
        ("where(same, IGNORE)", "where(same, 0)", "not 0"),
        ("if not 1 <= k < T:", "if not 0 <= k < T:", "ValueError"),
    ],
    "fixed_future_loss": [
        ("embedding[tokens[:, 1:-1]]", "embedding[tokens[:, 2:]]", "bug is still there"),
        ("embedding[tokens[:, 1:-1]]", "embedding[tokens[:, :-2]]", "its own token i"),
        ("(hidden[:, :-2], following)", "(following, hidden[:, :-2])", "expects it behind"),
        ("tokens[:, 2:].flatten()", "tokens[:, 1:-1].flatten()", "targets are token i"),
        ("if tokens.shape[1] < 3:", "if False:", "ValueError"),
    ],
    "rank_needed": [
        ("vectors - vectors.mean(0)", "vectors", "did not subtract the mean"),
        (".square()", "", "variances are their squares"),
        (".sum()) + 1", ".sum())", "one too few"),
        ("heads.flatten(1), 0.9)", "heads[:, 0], 0.9)", "joint is"),
        ('reason = "a"', 'reason = "b"', "save hardly anything jointly"),
        ('reason = "a"', 'reason = "c"', "differ by far more"),
        ("if not 0 < share < 1:", "if False:", "ValueError"),
    ],
}
