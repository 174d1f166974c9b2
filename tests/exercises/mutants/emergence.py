"""Wrong versions of lesson 13's solutions: (correct text, wrong text, words of the message)."""

MUTANTS = {
    "prefix_score": [
        ("range(1, t) if tokens[s - 1]", "range(t) if tokens[s]", "same token itself"),
        (
            "for s in range(1, t) if tokens[s - 1]",
            "for s in range(t - 1) if tokens[s + 1]",
            "before the same token",
        ),
        ("range(1, t)", "range(1, t + 1)", "own follower"),
        ("weights[t, places].sum()", "weights[t, places[-1]]", "only the latest"),
        ("weights[t, places].sum()", "weights[places, t].sum()", "swapped"),
        ("sum(found) / len(found)", "sum(found) / len(tokens)", "over all positions"),
        ("    if not found:", "    if False:", "should raise ValueError|ZeroDivision"),
    ],
    "without": [
        ("        return (by_head.flatten(-2),)", "        return None", "nothing happens"),
        (".clone()\n", "\n", "in place"),
        ("by_head[:, :, heads] = 0.0", "by_head[:, :, heads[:1]] = 0.0", "only one"),
        (
            "unflatten(-1, (n_heads, -1)).clone()\n        by_head[:, :, heads] = 0.0",
            "unflatten(-1, (-1, n_heads)).clone()\n        by_head[..., heads] = 0.0",
            "channels apart",
        ),
        (
            "    try:\n        yield\n    finally:\n        handle.remove()",
            "    yield\n    handle.remove()",
            "try … finally",
        ),
        ("        handle.remove()", "        pass", "stays after the block"),
        (
            "    try:\n        yield\n    finally:\n        handle.remove()",
            "    try:\n        yield\n    except KeyError:\n        pass\n    handle.remove()",
            "swallows errors",
        ),
        ("if any(not 0 <= head", "if any(not head", "ValueError|head"),
    ],
    "three_metrics": [
        ("loss.item(),", "loss.item() / 0.6931471805599453,", "in bits"),
        ("right[counted].float()", "right.float()", "count as mistakes in your accuracy"),
        ("(right | ~counted).all(dim=1)[rows]", "right.all(dim=1)[rows]", "count as mistakes"),
        (".all(dim=1)[rows]", ".all(dim=1)", "left out"),
        ("(right | ~counted).all(dim=1)", "(right & counted).any(dim=1)", "one right token"),
        (
            "exact.float().mean().item()\n",
            "right[counted].float().mean().item()\n",
            "is the accuracy",
        ),
        ("targets[counted])\n", "targets[counted], reduction='sum')\n", "is a sum"),
        ("if not counted.any():", "if False:", "should raise ValueError"),
    ],
    "fixed_accuracy": [
        (
            "guesses, following = logits[:, :-1].argmax(dim=-1), tokens[:, 1:]",
            "guesses, following = logits.argmax(dim=-1), tokens",
            "bug is still there",
        ),
        (
            "logits[:, :-1].argmax(dim=-1), tokens[:, 1:]",
            "logits[:, 1:].argmax(dim=-1), tokens[:, :-1]",
            "token before",
        ),
        (">= lags[:, None]", ">= lags[:, None] - 1", "lag − 1"),
        (">= lags[:, None]", "> lags[:, None]", "lag \\+ 1"),
        (">= lags[:, None]", ">= 0 * lags[:, None]", "every position"),
        (">= lags[:, None]", ">= lags.max().expand(len(lags), 1)", "one lag"),
    ],
    "questions_needed": [
        ("    return n\n", "    return n - 1\n", "round down"),
        ("solved = token_accuracy**n_tokens", "solved = token_accuracy", "take the power"),
        ("while 1 - all_fail < certainty", "while all_fail > certainty", "certain to fail"),
        (
            "n, all_fail = 1, 1 - solved",
            "return round(1 / solved + 0.5)\n    n, all_fail = 1, 1",
            "mean waiting time",
        ),
        ("if not 0 < token_accuracy <= 1:", "if token_accuracy <= 0:", "should raise ValueError"),
        ("questions_needed(0.74, 20)", "questions_needed(0.74, 1)", "not for one"),
        ('real = "B"', 'real = "A"', "power of 20"),
        ('reason = "b"', 'reason = "c"', "proves nothing"),
    ],
}
