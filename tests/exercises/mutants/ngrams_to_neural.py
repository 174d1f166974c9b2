"""Wrong versions of the exercises of lesson 01 that a learner would really write."""

MUTANTS = {
    "safe_perplexity": [
        (
            "F.log_softmax(logits, dim=-1)",
            "logits.exp().div(logits.exp().sum(-1, True)).log()",
            "exp overflows",
        ),
        (
            "F.log_softmax(logits, dim=-1)",
            "logits.softmax(-1).clamp(min=1e-9).log()",
            "do not clip or pad",
        ),
        ("dim=-1)", "dim=1)", "softmax runs over time"),
        ("(-chosen).mean().exp()", "(-chosen).exp().mean()", "you average perplexities"),
        ("(-chosen).mean().exp()", "(-chosen).mean()", "mean surprisal in nats"),
        ("(-chosen).mean().exp()", "(-chosen).sum().exp()", "divide by the number of targets"),
        ("(-chosen)", "chosen", "minus the logarithm"),
        ("if logits.shape[:-1] != targets.shape:", "if False:", "raise"),
    ],
    "kneser_ney": [
        (
            "q = seen.sum(0) / seen.sum()",
            "q = counts.sum(0) / counts.sum()",
            "after how many different words",
        ),
        (".clamp(min=0)", "", r"max\(count − d, 0\)"),
        ("(kept + freed * q)", "kept", "rows do not sum to 1"),
        ("seen.sum(1, keepdim=True)", "len(counts)", "taken V times"),
        ("torch.where(total > 0, p, q)", "p", "yours is 0"),
        (
            "total.clamp(min=1)\n    return torch.where(total > 0, p, q)",
            "total\n    return p",
            "yours is NaN",
        ),
        (
            "kept = (counts - discount).clamp(min=0)",
            "kept = counts.sub_(discount).clamp_(min=0)",
            "in place",
        ),
        ("if not 0 < discount < 1:", "if False:", "raise ValueError"),
    ],
    "honest_perplexity": [
        (
            "fit(train).tune(held_out)",
            "fit(line(articles)).tune(test)",
            "still in the counts|both leaks",
        ),
        ("fit(train)", "fit(line(articles))", "still in the counts"),
        ("tune(held_out)", "tune(test)", "weights are still chosen on the test"),
        ("tune(held_out)", "tune(train)", "highest order"),
        ("perplexity(test)", "perplexity(held_out)", "you measure on the articles that chose"),
        ("articles[4 * fifth :]", "articles[4 * fifth : 5 * fifth]", "no multiple of 5"),
        ("if len(articles) < 5:", "if False:", "ValueError"),
    ],
    "nearest": [
        ("    cosine[word] = -2  # below every cosine\n", "", "the word itself is among"),
        ("F.normalize(vectors, dim=1)", "vectors", "divide by the lengths"),
        (".topk(k)", ".mul(-1).topk(k)", "neighbours of all words is"),
        ("cosine.topk(k).indices", "cosine.argsort()[1 : k + 1]", "least similar"),
        ("if not 1 <= k <= len(vectors) - 1:", "if False:", "ValueError"),
    ],
    "advise": [
        ("2 if n_words < 60_000 else 3", "3", "too rare to have been counted"),
        ("2 if n_words < 60_000 else 3", "2", "enough text to use more context"),
        ("2 if n_words < 60_000 else 3", "3 if n_words < 60_000 else 2", "too rare"),
        ("2 if n_words < 60_000 else 3", "1 if n_words < 5_000 else 3", "order 1"),
        ("2 if n_words < 60_000 else 3", "2.0 if n_words < 60_000 else 3.0", "float"),
        ("if n_words < 1:", "if False:", "ValueError"),
    ],
}
