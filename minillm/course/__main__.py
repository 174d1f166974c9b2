"""Run lessons, see claims, fetch data, score exercises: `python -m minillm.course COMMAND`."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

import minillm
from minillm.course import report, runner
from minillm.course.claims import Table
from minillm.course.environment import environment_yml
from minillm.course.outcome import read_results


class UsageError(ValueError):
    """A wrong argument: one clear line, exit status 2, nothing has run."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UsageError(message)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = Parser(
        prog="python -m minillm.course",
        description="Run lessons, see their claims, fetch data, score exercises.",
        epilog="COMMAND --help says more of each.",
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run lessons; write build/report.html")
    run.add_argument("lessons", nargs="*", metavar="LESSON", help='"04" or its full name (all)')
    run.add_argument("--seed", type=int, default=0, help="claims hold for seeds 0 to 4 (0)")
    run.add_argument("--scale", default="lesson", help="lesson for a CPU, full for a GPU")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (auto)")
    run.add_argument("--jobs", type=int, default=2, help="lessons at a time (2)")
    run.set_defaults(action=run_lessons)

    claims = commands.add_parser("claims", help="show the claims of the last run")
    claims.add_argument("--write", action="store_true", help="put them into README.md")
    claims.set_defaults(action=show_claims)

    fetch = commands.add_parser("fetch", help="download data and weights")
    fetch.add_argument("names", nargs="*", metavar="NAME")
    fetch.add_argument("--all", action="store_true", help="every asset")
    fetch.add_argument("--list", action="store_true", help="name, size, licence, cached?")
    fetch.set_defaults(action=fetch_assets)

    check = commands.add_parser("check", help="score your exercises")
    check.add_argument("path", type=Path, help="such as exercises/04_attention_to_transformer")
    check.set_defaults(action=check_exercises)

    exercises = commands.add_parser("exercises", help="regenerate exercises/ from solutions/")
    exercises.add_argument("names", nargs="*", metavar="LESSON")
    exercises.set_defaults(action=generate_exercises)

    environment = commands.add_parser("environment", help="regenerate environment.yml")
    environment.set_defaults(action=write_environment)
    return main


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status: 0 well, 1 something failed, 2 wrong usage."""
    try:
        options = parser().parse_args(arguments)
        return options.action(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run_lessons(options: argparse.Namespace) -> int:
    """Run lessons, print their claims and write the report."""
    lessons = runner.find_lessons(options.lessons)
    if options.scale not in runner.SCALES:
        raise UsageError(f"unknown scale {options.scale!r}: expected lesson or full")
    if options.seed < 0 or options.jobs < 1:
        raise UsageError(f"seed={options.seed}, jobs={options.jobs}: expected ≥ 0 and ≥ 1")
    minillm.device(options.device)
    build = runner.root() / "build"
    console = Console(highlight=False, soft_wrap=True)
    try:
        results = runner.run(
            lessons,
            {"scale": options.scale, "device": options.device, "seed": options.seed},
            build=build,
            jobs=options.jobs,
            cell_timeout=runner.CELL_TIMEOUT[options.scale],
            console=console,
        )
    except KeyboardInterrupt:
        report.write_report(build)
        finished = len(read_results(build))
        console.print(f"Stopped. {finished} finished lessons are in build/report.html.")
        return 130
    _print_claims(console, results)
    console.print(f"Report: {report.write_report(build)}")
    return 0 if all(result.passed for result in results) else 1


def show_claims(options: argparse.Namespace) -> int:
    """Show the last run's claims; with --write put them into the README."""
    root = runner.root()
    results = read_results(root / "build")
    if not results:
        raise UsageError("nothing has run yet: python -m minillm.course run")
    _print_claims(Console(highlight=False, soft_wrap=True), results)
    if options.write:
        missing = [p.stem for p in runner.find_lessons() if p.stem not in _passed(results)]
        if missing:
            raise UsageError(f"the README needs a whole run; not passed: {', '.join(missing)}")
        report.write_readme(root / "README.md", results)
    return 0


def fetch_assets(options: argparse.Namespace) -> int:
    """Download assets, or list what there is."""
    from minillm.data import assets

    if options.list:
        for name, asset in assets.ASSETS.items():
            cached = "cached" if assets.cached(name) else "-"
            print(
                f"{name:10} {asset.size / 1e6:6.1f} MB  {cached:7} {asset.licence:32} {asset.about}"
            )
        return 0
    names = list(assets.ASSETS) if options.all else options.names
    if not names:
        raise UsageError("fetch what? name assets, or use --all or --list")
    for name in names:
        if name not in assets.ASSETS:
            raise UsageError(f"unknown asset {name!r}: expected {', '.join(assets.ASSETS)}")
    try:
        for name in names:
            assets.fetch(name)
    except assets.AssetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check_exercises(options: argparse.Namespace) -> int:
    """Score a learner's notebook."""
    from minillm.course import grading

    return grading.check(options.path)


def generate_exercises(options: argparse.Namespace) -> int:
    """Regenerate the learners' copies from the solutions."""
    from minillm.course.exercises import generate

    for path in generate(options.names or None, repository=runner.root()):
        print(path)
    return 0


def write_environment(options: argparse.Namespace) -> int:
    """Regenerate environment.yml."""
    root = runner.root()
    (root / "environment.yml").write_text(environment_yml(root / "pyproject.toml"), "utf-8")
    return 0


def _passed(results) -> set[str]:
    return {result.lesson for result in results if result.passed}


def _print_claims(console: Console, results) -> None:
    for result in results:
        if result.claims:
            console.print(f"\n{result.lesson}", style="bold")
            console.print(str(Table(result.claims)), markup=False)


if __name__ == "__main__":
    sys.exit(main())
