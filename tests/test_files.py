"""Files on the user's disk: whole or not at all, whatever happens in the middle."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from trellis_core.context import RunContext
from trellis_core.errors import Cancelled, InputError
from trellis_core.files import (
    DiskError,
    bad_on_windows,
    check_name,
    check_writable,
    locked,
    replacing,
    user_cache,
    user_state,
    write_tensors,
    write_whole,
)

ROOT = Path(__file__).parents[1]


def test_saving_replaces_whole_files_and_respects_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "a.glb"
    path.write_bytes(b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.glb"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    write_whole(tmp_path / "secret", b"x", 0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0


def test_an_error_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as draft:
        draft.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, phrase in (
        (tmp_path / "missing" / "a.glb", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "a.glb", "is a file"),
        (tmp_path / "a\0b.glb", "NUL"),
        (tmp_path / ("x" * 252 + ".glb"), "longer than"),
        (tmp_path / ("\N{PILE OF POO}" * 63 + ".glb"), "longer than"),
    ):
        for check in (write_whole, lambda p, _=b"": check_writable(p)):
            with pytest.raises(InputError, match=phrase):
                check(path, b"x")
    (tmp_path / "file").unlink()
    old = tmp_path / "a.glb"
    old.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="No space left") as caught:
        write_whole(old, b"new")
    assert caught.value.errno == errno.ENOSPC
    assert old.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.glb"]


@pytest.mark.parametrize(
    "name",
    [
        "two words.glb",
        "Öl & Ähre.glb",
        "猫.glb",
        "\N{CAT FACE}\N{ZERO WIDTH JOINER}.glb",
        "x" * 251 + ".glb",
        "-rf.glb",
        "a'b\"c.glb",
    ],
)
def test_names_that_people_give(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a folder, ünd more" / name
    path.parent.mkdir()
    check_writable(path)
    write_whole(path, b"1")
    write_tensors(path, {"x": torch.ones(3)})
    assert os.listdir(path.parent) == [name] and path.stat().st_size > 50


@pytest.mark.parametrize("name", ["CON", "nul.glb", "Com1.tar.gz", "LPT¹", "aux .x", "a:b", "what?", "a\nb", "ends. ", "ends."])
def test_names_that_windows_takes_for_something_else(name: str, tmp_path: Path) -> None:
    assert bad_on_windows(name)
    with pytest.raises(DiskError, match="cannot be a file's name"):
        check_name(tmp_path / name, windows=True)
    for fine in ("console.glb", "com10", "nul_00001_.glb", "a.b.c", "lpt"):
        assert not bad_on_windows(fine)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
@pytest.mark.parametrize(
    "way",
    [
        "write_whole(path, bytes(1_000_000))",
        "write_tensors(path, {'x': torch.zeros(250_000)})",
        "write_state(path, {'x': torch.zeros(250_000)})",
    ],
)
def test_a_disk_that_fills_up_in_the_middle(way: str, tmp_path: Path) -> None:
    """A limit of the file size breaks off a write as a full disk does, for root too."""
    script = f"""
import resource, torch
from pathlib import Path
from trellis_core.files import *
path = Path({str(tmp_path / "a.bin")!r})
write_whole(path, b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    {way}
except DiskError as error:
    print("said", error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.stdout.startswith("said"), done.stdout + done.stderr
    assert "too large" in done.stdout and (tmp_path / "a.bin").read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.skipif(os.name == "nt", reason="permissions of folders are POSIX")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    """In a process without root's privileges, which ignore permissions."""
    tmp_path.chmod(0o555)
    script = f"""
import filelock, os
from trellis_core.files import *
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for act in (check_writable, lambda path: write_whole(path, b"x"), lambda path: locked(path).__enter__()):
    try:
        act({str(tmp_path / "a.bin")!r})
    except DiskError as error:
        print(error)
"""
    for folder in list(tmp_path.parents)[:3]:
        folder.chmod(folder.stat().st_mode | 0o055)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.stdout.count("Permission denied") == 3, done.stdout + done.stderr
    assert os.listdir(tmp_path) == []


def test_a_lock_is_held_by_one_at_a_time_and_can_be_given_up(tmp_path: Path) -> None:
    lock, inside = tmp_path / "lock", []

    def work(number: int) -> None:
        with locked(lock):
            inside.append(number)
            assert len(inside) == 1
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with locked(lock):
        with pytest.raises(BlockingIOError), locked(lock, wait=False):
            pass
        with pytest.raises(Cancelled), locked(lock, RunContext(is_cancelled=lambda: True)):
            pass
    with locked(lock, wait=False):
        pass


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    script = f"""
import os
from trellis_core.files import locked
with locked({str(tmp_path / "lock")!r}):
    print("held", flush=True)
    input()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
        pass
    holder.kill()
    holder.communicate()
    with locked(tmp_path / "lock", wait=False):
        pass


def test_own_folders_are_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import platformdirs

    assert user_state("service") == platformdirs.user_state_path("trellis_core", appauthor=False) / "service"
    if sys.platform.startswith("linux"):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert user_state("service") == tmp_path / "state" / "trellis_core" / "service"
        assert user_cache("loras") == tmp_path / "cache" / "trellis_core" / "loras"
    assert not (tmp_path / "state").exists()
