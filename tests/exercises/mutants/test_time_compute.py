"""Wrong versions of lesson 27's solutions: (correct text, wrong text, words of the message)."""

MUTANTS = {
    "mean_pass_at_k": [
        ("return 1 - sum(missed)", "return sum(missed)", "none is right"),
        ("math.comb(n - c, k) / math.comb(n, k)", "(1 - c / n) ** k", "biased"),
        ("1 - sum(missed) / len(counts)", "len(counts) - sum(missed)", "divide by how many"),
        ("math.comb(n - c, k)", "math.comb(c, k)", "subsets of right samples|your mean"),
        ("math.comb(n - c, k) / math.comb(n, k)", "float(c == 0)", "among all n"),
        ("if not 1 <= k <= n:", "if False:", "ValueError|ZeroDivision"),
    ],
    "process_reward": [
        (
            "return steps.where(mask, 0.0).sum(dim=1)",
            "return steps.where(mask, 0.0).sum(dim=1).exp()",
            "its logarithm",
        ),
        (
            "return steps.where(mask, 0.0).sum(dim=1)",
            "return steps.where(mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)",
            "average",
        ),
        ("steps.where(mask, 0.0)", "steps", "mask is False"),
        ("steps.where(mask, 0.0)", "steps.where(~mask, 0.0)", "upside down"),
        ("torch.nn.functional.logsigmoid(log_odds)", "log_odds", "add up the log-odds"),
        ("torch.nn.functional.logsigmoid(log_odds)", "log_odds.sigmoid()", "add up chances"),
        (".sum(dim=1)", ".amin(dim=1)", "worst step"),
        ("torch.nn.functional.logsigmoid(log_odds)", "log_odds.sigmoid().log()", "logsigmoid"),
        ("if log_odds.shape != mask.shape:", "if False:", "mask|RuntimeError"),
    ],
    "pick_of_k": [
        (
            "sum(right[i] for i in picks)",
            "sum(any(right[i] for i in s) for s in subsets)",
            "pass@k",
        ),
        ("max(subset,", "min(subset,", "lowest score"),
        (
            "combinations(range(len(right)), k)",
            "combinations(range(len(right)), len(right))",
            "not at subsets",
        ),
        (" / len(subsets)", "", "divided|your share"),
        ("key=lambda i: scores[i]", "key=lambda i: i", "your share"),
    ],
    "fixed_vote": [
        ("if answer is not None:", "if True:", "nobody's vote"),
        (
            "max(votes, key=votes.get, default=None)",
            "max(sorted(votes), key=votes.get, default=None)",
            "than the first",
        ),
        (
            "max(votes, key=votes.get, default=None)",
            "max(votes, key=votes.get)",
            "if nobody answered",
        ),
        ("max(votes,", "min(votes,", "rarest"),
        (
            "max(votes, key=votes.get, default=None)",
            "next(iter(votes), None)",
            "however frequent|than the first|rarest",
        ),
    ],
    "allocate": [
        ("r * (1 - r) ** n for", "r for", "its gain falls"),
        ("r * (1 - r) ** n for", "1 - (1 - r) ** (n + 1) for", "its gain falls|what one more"),
        ("r * (1 - r) ** n for", "r * (1 - r) ** (n + 1) for", "off by one"),
        ("range(budget)", "range(budget - 1)", "add up to"),
        (
            "counts[gains.index(max(gains))] += 1",
            "counts[len(gains) - 1 - gains[::-1].index(max(gains))] += 1",
            "first question comes first",
        ),
        ("gain = sum(", "gain = -sum(", "mind the sign"),
        ("unsolved = shares.index(0)", "unsolved = shares.index(0) + 1", "counted from 0"),
        ('reason = "b"', 'reason = "a"', "rate 0"),
    ],
}
