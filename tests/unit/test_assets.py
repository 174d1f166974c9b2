"""The asset store against a folder of our own: no network is touched.

A tiny wheel stands in for the real ones; PIP_NO_INDEX and PIP_FIND_LINKS point pip at the
folder it lies in, as a school's own mirror would.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

from minillm.data import assets

PAYLOAD = bytes(range(256)) * 40
FILENAME = "tiny_asset-1.0-py3-none-any.whl"


def build_wheel(folder):
    wheel = folder / FILENAME
    info = "tiny_asset-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/first.bin", PAYLOAD)
        archive.writestr("tiny/data/a.json", "{}")
        archive.writestr("tiny/data/b.json", "[]")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An asset "tiny", the folder pip finds it in, and an empty cache."""
    links = tmp_path / "links"
    links.mkdir()
    wheel = build_wheel(links)
    asset = assets.Asset(
        name="tiny",
        package="tiny-asset",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        size=wheel.stat().st_size,
        licence="MIT",
        about="a tiny wheel",
        members=("tiny/first.bin", "tiny/data/"),
    )
    monkeypatch.setitem(assets.ASSETS, "tiny", asset)
    for name, value in pip_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return links


def pip_environment(tmp_path):
    return {
        "MINILLM_HOME": str(tmp_path / "home"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "links"),
        "PIP_CONFIG_FILE": os.devnull,
    }


def forbid_pip(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pip was called although the cache is intact")

    monkeypatch.setattr(assets.subprocess, "Popen", refuse)


def test_fetch_downloads_once_and_then_needs_no_pip(tiny, monkeypatch):
    assert not assets.cached("tiny")
    wheel = assets.fetch("tiny", progress=False)
    assert wheel.read_bytes() == (tiny / FILENAME).read_bytes()
    assert assets.cached("tiny")
    forbid_pip(monkeypatch)
    assert assets.fetch("tiny") == wheel


def test_nothing_temporary_is_left_behind(tiny):
    assets.path("tiny")
    assert sorted(p.name for p in assets.home().iterdir()) == ["files", "wheels"]


def test_the_stamp_saves_hashing_again(tiny, monkeypatch):
    assets.fetch("tiny", progress=False)
    monkeypatch.setattr(assets, "_sha256", lambda file: pytest.fail("hashed again"))
    assert assets.cached("tiny")


def test_what_one_user_fetched_another_can_read(tiny):
    before = os.umask(0o022)
    try:
        wheel, file = assets.fetch("tiny", progress=False), assets.path("tiny")
    finally:
        os.umask(before)
    for shared in (wheel, assets._stamp(wheel), file, assets._stamp(file)):
        assert shared.stat().st_mode & 0o044 == 0o044, shared


def test_a_folder_that_may_only_be_read_serves_what_it_holds(tiny, monkeypatch):
    wheel = assets.fetch("tiny", progress=False)
    assets._stamp(wheel).unlink()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(assets.Path, "write_text", refuse)
    monkeypatch.setattr(assets.Path, "mkdir", refuse)
    assert assets.read("tiny") == PAYLOAD
    with pytest.raises(assets.AssetError, match=r"'tiny': .*denied.*MINILLM_HOME can name"):
        assets.path("tiny")  # nobody has unpacked it yet
    wheel.unlink()
    with pytest.raises(assets.AssetError, match=r"'tiny': .*denied.*MINILLM_HOME can name"):
        assets.fetch("tiny", progress=False)


def test_a_wheel_placed_by_hand_is_verified_and_used(tiny, monkeypatch):
    folder = assets.home() / "wheels"
    folder.mkdir(parents=True)
    (folder / FILENAME).write_bytes((tiny / FILENAME).read_bytes())
    forbid_pip(monkeypatch)
    assert assets.read("tiny") == PAYLOAD


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_wheel_is_fetched_again(tiny, damage):
    wheel = assets.fetch("tiny", progress=False)
    good = wheel.read_bytes()
    bad = good[:-10] if damage == "truncated" else good[:50] + bytes([good[50] ^ 1]) + good[51:]
    wheel.write_bytes(bad)
    # A clock too coarse to notice the rewrite must not hide it.
    os.utime(wheel, ns=(0, wheel.stat().st_mtime_ns + 1))
    assert not assets.cached("tiny")
    assert assets.fetch("tiny", progress=False).read_bytes() == good


def test_another_file_under_the_pinned_name_is_refused_after_two_tries(tiny, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "tiny", replace(assets.ASSETS["tiny"], sha256="0" * 64))
    calls = []
    download = assets._pip_download

    def counted(*args, **kwargs):
        calls.append(kwargs["no_cache"])
        return download(*args, **kwargs)

    monkeypatch.setattr(assets, "_pip_download", counted)
    with pytest.raises(assets.AssetError, match="SHA-256 was not 0000"):
        assets.fetch("tiny", progress=False)
    assert calls == [False, True]
    assert not assets.cached("tiny")


def test_offline_with_a_cold_cache_says_what_to_do(tiny):
    (tiny / FILENAME).unlink()
    with pytest.raises(assets.AssetError) as error:
        assets.fetch("tiny", progress=False)
    message = str(error.value)
    size = f"{assets.ASSETS['tiny'].size / 1e6:.1f} MB"
    for needed in ("'tiny'", size, str(assets.home()), "tiny-asset==1.0", FILENAME, "by hand"):
        assert needed in message
    assert "Traceback" not in message


def test_of_two_processes_that_fetch_at_once_the_second_waits(tiny, tmp_path):
    program = (
        "import sys; from minillm.data import assets\n"
        "download = assets._pip_download\n"
        "def counted(*args, **kwargs):\n"
        "    print('downloading', flush=True)\n"
        "    return download(*args, **kwargs)\n"
        "assets._pip_download = counted\n"
        f"assets.ASSETS['tiny'] = assets.{assets.ASSETS['tiny']!r}\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"  # both wait here until both are ready
        "assert assets.path('tiny').read_bytes() == bytes(range(256)) * 40\n"
        "assert assets.cached('tiny')\n"
    )
    environment = {**os.environ, **pip_environment(tmp_path)}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for _ in range(2)
    ]
    for process in pair:
        assert process.stdout.readline() == "ready\n"
    for process in pair:
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = ""
    for process in pair:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        printed += output
    assert printed == "downloading\n"
    assert assets.cached("tiny")


def test_members_read_and_path_agree(tiny):
    assert assets.members("tiny") == ["tiny/first.bin", "tiny/data/a.json", "tiny/data/b.json"]
    assert assets.read("tiny") == assets.path("tiny").read_bytes() == PAYLOAD
    assert assets.read("tiny", "b.json") == b"[]"
    assert assets.read("tiny", "tiny/data/a.json") == b"{}"


def test_a_changed_extracted_file_is_extracted_again(tiny):
    file = assets.path("tiny")
    file.write_bytes(b"short")
    assert assets.path("tiny").read_bytes() == PAYLOAD


def test_progress_is_drawn_on_stderr(tiny, capsys):
    assets.fetch("tiny")
    out, err = capsys.readouterr()
    assert out == "" and "fetch tiny" in err and "100%" in err


def test_unknown_names_are_refused(tiny):
    with pytest.raises(ValueError, match="no asset is called 'nope'; choose one of smollm2"):
        assets.fetch("nope")
    with pytest.raises(ValueError, match=r"no files called 'x.json'; it offers tiny/first.bin"):
        assets.read("tiny", "x.json")
    # Files of the wheel that are not declared stay out of reach.
    with pytest.raises(ValueError, match="no files called 'METADATA'"):
        assets.read("tiny", "METADATA")


def test_every_real_asset_is_pinned_completely():
    for name, asset in assets.ASSETS.items():
        assert name == asset.name
        assert len(asset.sha256) == 64 and asset.size > 0 and asset.licence and asset.members
        assert asset.filename.startswith(asset.package.replace("-", "_") + "-" + asset.version)


def test_progress_survives_folders_that_vanish_while_pip_works(tmp_path, monkeypatch):
    (tmp_path / "pip-unpack").mkdir()
    (tmp_path / "wheel").write_bytes(b"12345")
    scandir = os.scandir

    def vanishing(folder):
        if str(folder).endswith("pip-unpack"):
            raise FileNotFoundError(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert assets._largest_file(tmp_path) == 5
