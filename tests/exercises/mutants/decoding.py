"""Wrong versions of the solutions of exercises 06 and what the checks must say to them."""

MUTANTS = {
    "top_p": [
        ("chances.cumsum(dim=-1) - chances >= p", "chances.cumsum(dim=-1) > p", "crosses p"),
        ("drop.scatter(-1, order, drop)", "drop", "sorted order"),
        ('float("-inf")', "0.0", "-inf"),
        ("descending=True", "descending=False", "least likely"),
        (
            "drop.scatter(-1, order, drop)",
            "drop.scatter(-1, order, drop)[:1]",
            "nucleus of its own",
        ),
        ("logits.masked_fill(", "logits.masked_fill_(", "in place"),
        ("chances = ordered.softmax(dim=-1)", "chances = ordered", "softmax"),
        ("if not 0 < p <= 1:", "if p > 1:", "should raise ValueError"),
    ],
    "llama2_70b_cache": [
        ("numbers = 2 * 80", "numbers = 80", "factor of 2"),
        ("return 2 * numbers", "return 4 * numbers", "not 4"),
        ("8 if grouped else 64", "64 if grouped else 8", "wrong way round"),
        ("8192 // 64", "8192 // n_kv_heads", "128 numbers"),
        ("2 * 80 *", "2 *", "80 layers"),
        ("return 2 * numbers * n_tokens", "return 2.0 * numbers * n_tokens", "expected int"),
    ],
    "next_tokens": [
        ("lengths - 1]", "-1]", "last column"),
        ("lengths - 1]", "lengths - 2]", "too early"),
        ("lengths - 1]", "lengths.clamp(max=longest - 1)]", "too late"),
        (
            "prompt + [0] * (longest - len(prompt)) for prompt in prompts]\n"
            "    with torch.no_grad():\n        logits = model(torch.tensor(rows))\n"
            "    # The bug was the last column: for a shorter prompt that is padding.\n"
            "    last = logits[torch.arange(len(prompts)), lengths - 1]",
            "[0] * (longest - len(prompt)) + prompt for prompt in prompts]\n"
            "    with torch.no_grad():\n        logits = model(torch.tensor(rows))\n"
            "    last = logits[:, -1]",
            "pad on the right",
        ),
        (
            "        logits = model(torch.tensor(rows))\n",
            "        logits = torch.cat([model(torch.tensor([row])) for row in rows])\n",
            "call the model 5 times",
        ),
        ("if not all(prompts):", "if False:", "should raise ValueError"),
    ],
    "beam_search": [
        ("[([], 0.0)]", "[([], 0.0)] * n_beams", "equal copies"),
        ("scores + torch.tensor", "scores + 0 * torch.tensor", "texts of|last word"),
        ("    return beams", "    return beams[::-1]", "best text comes first"),
        (
            "    return beams",
            "    return [(prompt + t, s) for t, s in beams]",
            "without the prompt",
        ),
        ("    return beams", "    return [(t, s / n_steps) for t, s in beams]", "not the mean"),
        ("topk(min(n_beams, totals.numel()))", "topk(1)", "greedy"),
        (
            "        beams = [\n"
            "            ([*beams[i // n_words][0], i % n_words], total)\n"
            "            for total, i in "
            "zip(best.values.tolist(), best.indices.tolist(), strict=True)\n"
            "        ]",
            "        if len(beams) < n_beams:\n"
            "            beams = [([*beams[i // n_words][0], i % n_words], t)"
            " for t, i in zip(*map(torch.Tensor.tolist, best))]\n"
            "        else:\n"
            "            beams = [([*b[0], r.argmax().item()], r.max().item())"
            " for b, r in zip(beams, totals)]\n"
            "            beams.sort(key=lambda pair: -pair[1])",
            "own best word",
        ),
    ],
    "choose_p": [
        ("return max(fitting)", "return min(fitting)", "largest"),
        ("return max(fitting)", "return fitting[0]", "in no order"),
        (
            "top_p(probabilities.log(), p).softmax(dim=-1)",
            "probabilities * top_p(probabilities.log(), p).isfinite()",
            "add up to 1 again",
        ),
        ("~allowed", "allowed", "impossible ones|limit"),
        ("if not fitting:", "if False:", "ValueError"),
    ],
}
