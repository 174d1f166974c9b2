"""Run every benchmark here and print its ratios: `make bench`, or `python tests/bench [NAME…]`.

Each runs in a process of its own, so that none inherits another's memory or warmed-up threads.
Use a quiet machine. A benchmark is a file bench_NAME.py whose main() prints its lines.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(names: list[str]) -> int:
    """Run the named benchmarks (all for no names); return how many did not finish."""
    benchmarks = {path.stem.removeprefix("bench_"): path for path in HERE.glob("bench_*.py")}
    unknown = sorted(set(names) - set(benchmarks))
    if unknown:
        print(f"error: unknown benchmark {unknown[0]!r}: expected {', '.join(sorted(benchmarks))}")
        return 2
    failures = 0
    for name in names or sorted(benchmarks):
        print(f"\n{name}", flush=True)
        failures += subprocess.run([sys.executable, benchmarks[name]], cwd=HERE).returncode != 0
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
