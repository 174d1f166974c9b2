"""Run the same experiment with many settings: resumable, cached, in parallel processes.

Each finished run is one small file in a folder, named by what was run and with which settings. A
grid that was interrupted goes on where it stopped, and a larger grid runs only what is new.
"""

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm

Settings = dict[str, object]
Result = dict[str, object]


def run_grid(
    run: Callable[..., Result],
    settings: Sequence[Settings],
    folder: str | Path,
    *,
    workers: int = 1,
    progress: bool = True,
) -> list[Result]:
    """`[run(**s) for s in settings]`, skipping what `folder` already holds.

    Args:
        run: keyword arguments and result are what JSON can hold. With several workers it must be
            importable, not written in a notebook: each worker is a fresh process.
        folder: one file per finished run, made whole or not at all. The name depends on the name
            of `run` and the settings, not on its code: delete the folder when you change that.
        workers: processes at once, one thread each. With 1 everything happens in this process.

    Raises:
        ValueError: workers below 1, or several and a `run` that they cannot import.
        RuntimeError: a run failed; says with which settings. All others are finished and kept.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: expected at least 1")
    if workers > 1 and (run.__module__ == "__main__" or "." in run.__qualname__):
        raise ValueError(
            f"{run.__qualname__} is not importable: with workers={workers} it has to stand in a "
            "module, at the top level; or use workers=1"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / file_name(run, s) for s in settings]
    todo = {file: s for file, s in zip(files, settings, strict=True) if not file.exists()}
    _run_all(run, todo, min(workers, max(len(todo), 1)), progress)
    return [json.loads(file.read_text())["result"] for file in files]


def file_name(run: Callable, settings: Settings) -> str:
    """The file of a run: the same settings in another order have the same name."""
    text = json.dumps([run.__module__, run.__qualname__, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16] + ".json"


def run_once(run: Callable[..., Result], settings: Settings, file: Path) -> None:
    """One run, and its file. Whoever reads the file sees all of it or none."""
    record = {"settings": settings, "result": run(**settings)}
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _run_all(run: Callable, todo: dict[Path, Settings], workers: int, progress: bool) -> None:
    failed: list[tuple[Settings, Exception]] = []
    hidden = not progress or not todo
    with tqdm(total=len(todo), disable=hidden, file=sys.stdout, mininterval=1) as bar:
        for settings, error in _outcomes(run, todo, workers):
            if error:
                failed.append((settings, error))
            bar.update()
    for settings, error in failed:
        raise RuntimeError(
            f"{len(failed)} of {len(todo)} runs failed; {json.dumps(settings)}: {error}"
        ) from error


def _outcomes(
    run: Callable, todo: dict[Path, Settings], workers: int
) -> Iterator[tuple[Settings, Exception | None]]:
    """Settings and error, or None, of each run as it ends."""
    if workers == 1:
        for file, settings in todo.items():
            try:
                run_once(run, settings, file)
            except Exception as error:
                yield settings, error
            else:
                yield settings, None
        return
    context = multiprocessing.get_context("spawn")  # the same on every system; safe beside threads
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        started = {pool.submit(run_once, run, s, file): s for file, s in todo.items()}
        for future in as_completed(started):
            yield started[future], future.exception()
