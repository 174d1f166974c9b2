"""Wrong versions of lesson 08's solutions: (correct text, wrong text, words of the message)."""

MUTANTS = {
    "prefix_mask": [
        ("(s < prefix[:, None, None])", "(s <= prefix[:, None, None])", "one too long"),
        ("(s <= t) | (s < prefix", "(s < t) | (s < prefix", "does not see itself"),
        ("| (s < prefix[:, None, None])", "| (t < prefix[:, None, None])", "rows of the prefix"),
        ("return mask[:, None]", "return mask", "lacks the axis of the heads"),
        ("return mask[:, None]", "return ~mask[:, None]", "upside down"),
        ("prefix.min() < 1 or ", "", "raise ValueError"),
    ],
    "span_corrupt": [
        ("[*target, sentinels[len(spans)]]", "target", "lacks the closing sentinel"),
        ("sentinels[len(spans)]]", "sentinels[len(spans) - 1]]", "it takes the next one"),
        ("[sentinel, *tokens[first : first + length]]", "tokens[first : first + length]", "target"),
        (
            "[*tokens[position:first], sentinel]",
            "[*tokens[position:first], *[sentinel] * length]",
            "one sentinel for each word",
        ),
        ("[*tokens[position:first], sentinel]", "[*tokens[position:first], sentinels[0]]", "same"),
        ("source + tokens[position:]", "source", "after the last span is missing"),
        ("if first < position:", "if False:", "raise ValueError"),
        ("if len(sentinels) <= len(spans):", "if False:", "sentinel|check the input"),
    ],
    "cross_attention": [
        ("~real[:, None]", "real[:, None]", "upside down"),
        ('scores = scores.masked_fill(~real[:, None], float("-inf"))', "", "look at padding"),
        (" / math.sqrt(q.shape[-1])", "", "not divided by √D"),
        ("math.sqrt(q.shape[-1])", "q.shape[-1]", "divided by D, not by √D"),
        ("math.sqrt(q.shape[-1])", "math.sqrt(x.shape[-1])", "of the channels C"),
        ("~real[:, None]", "~(real[:, None] & torch.ones(4, 7).tril().bool())", "mask the future"),
        ("if len(x) != len(memory):", "if False:", "check the input"),
    ],
    "sentence_vectors": [
        (
            "(hidden * weights).sum(dim=1) / weights.sum(dim=1)",
            "hidden.mean(dim=1)",
            "average the padding in",
        ),
        ("return F.normalize(pooled, dim=-1)", "return pooled", "do not have length 1"),
        ("F.normalize(pooled, dim=-1)", "F.normalize(pooled, dim=0)", "over the batch"),
        ("hidden[:, 0]", "hidden[:, -1]", "you return the last"),
        ('if pooling == "cls":', "if False:", "ignore pooling"),
        ('if pooling not in ("mean", "cls"):', "if False:", "raise ValueError"),
    ],
    "fixed_masking": [
        (
            "torch.where(hidden, tokens, -100)",
            "torch.where(real, tokens, -100)",
            "every word is still scored",
        ),
        ("hidden = hide & real", "hidden = hide", "score padding"),
        ("torch.where(hidden, tokens, -100)", "torch.where(hidden, inputs, -100)", "hold the mask"),
        ("inputs = torch.where(hidden, mask_id, tokens)", "inputs = tokens", "still show"),
        (
            "inputs = torch.where(hidden, mask_id, tokens)",
            "inputs = tokens\n    tokens[hidden] = mask_id",
            "in place",
        ),
    ],
    "reach": [
        ("dim=1)\n", "dim=0)\n", "transposed"),
        ("> 1e-6", "< 1e-6", "upside down"),
        ("tokens.clone()", "tokens", "in place|your matrix"),
        ("if not ahead.any():", "if ahead.any():", "kinds"),
        ('"chat": "causal decoder"', '"chat": "encoder"', "chat"),
    ],
}
