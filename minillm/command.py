"""What the programs of the package share: help from the module's own text, errors in one line."""

import argparse
import sys
from collections.abc import Callable

from minillm.data.assets import AssetError
from minillm.train.loop import TrainingDiverged


def make_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m NAME`, whose help begins with `text` as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(work: Callable[[argparse.Namespace], object], given: argparse.Namespace) -> int:
    """Do the work; what its user can mend becomes one line on stderr.

    Returns:
        The exit status: 0, or 2 after an error, or 130 after Ctrl-C.
    """
    try:
        work(given)
        return 0
    except (ValueError, OSError, AssetError, TrainingDiverged) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
