"""Temporary files are private and of one process; what killed processes leave is cleared."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import clipedit
from clipedit.editor.files import staging
from clipedit.editor.files.whole import require_free_folder, save_tensors, staged_file, staged_folder, write_text


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def dead() -> int:
    """The number of a process that is gone."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def leftover(folder: Path, name: str, kind: str, pid: int, host: str | None = None) -> Path:
    return folder / f".{name}.{kind}-{host or staging._host()}-{pid}-abc_1234"


def test_a_file_is_private_until_it_is_whole_and_then_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with staged_file(tmp_path / "x") as temporary:
            temporary.write_text("a")
            assert mode(temporary) == 0o600 and not (tmp_path / "x").exists()
        assert mode(tmp_path / "x") == 0o640
        with staged_folder(tmp_path / "d", overwrite=False) as folder:
            assert mode(folder) == 0o700
        assert mode(tmp_path / "d") == 0o750
    finally:
        os.umask(before)


def test_a_link_that_somebody_put_where_the_temporary_file_would_be_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "victim").write_text("precious")
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: iter(["guessed1", "guessed2"]))
    planted = tmp_path / f"{staging._prefix(tmp_path / 'out', 'partial')}guessed1"
    planted.symlink_to(tmp_path / "victim")
    write_text(tmp_path / "out", "mine")
    assert (tmp_path / "victim").read_text() == "precious" and (tmp_path / "out").read_text() == "mine"


def test_temporary_names_are_not_predictable(tmp_path: Path) -> None:
    with staged_file(tmp_path / "x") as first, staged_file(tmp_path / "x") as second:
        assert first != second
        second.write_text("")
        first.write_text("")


def test_a_failed_block_leaves_neither_the_target_nor_a_temporary_file(tmp_path: Path) -> None:
    for stage in (staged_file(tmp_path / "x"), staged_folder(tmp_path / "y", overwrite=False)):
        with pytest.raises(RuntimeError), stage:
            raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_dead_processes_left_is_cleared_and_what_living_ones_write_is_not(tmp_path: Path, dead: int) -> None:
    gone = [leftover(tmp_path, "x", "partial", dead), leftover(tmp_path, "other.safetensors", "partial", dead)]
    kept = [leftover(tmp_path, "x", "partial", os.getppid()), leftover(tmp_path, "x", "partial", dead, "0" * 8)]
    kept += [tmp_path / ".x.partial-1234", tmp_path / f".x.partial-{staging._host()}-{dead}"]
    for path in [*gone, *kept]:
        path.write_text("half")
    (tmp_path / leftover(tmp_path, "f", "partial", dead).name).mkdir()
    write_text(tmp_path / "y", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"y", *(path.name for path in kept)}
    os.utime(kept[1], (0, 0))  # Another machine's, and nothing moved for years.
    require_free_folder(tmp_path / "z", overwrite=False)
    assert not kept[1].exists() and kept[0].exists()


def test_a_folder_is_replaced_without_a_moment_in_which_its_name_stands_for_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    if not staging.exchange_names(first, second):
        pytest.skip("this file system cannot exchange names")
    assert (first / "name").read_text() == "b" and (second / "name").read_text() == "a"


def test_the_old_folder_comes_back_where_a_kill_left_nothing_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "name").write_text("old")
    pid = os.fork()
    if pid == 0:  # The first rename works, at the second the process is killed.
        staging.exchange_names = lambda *_: False
        renames = iter([os.rename])
        os.rename = lambda *paths: next(renames, lambda *_: os._exit(9))(*paths)
        with staged_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "name").write_text("new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(clipedit.ExportError, match="not empty"):
        require_free_folder(tmp_path / "out", overwrite=False)
    assert (tmp_path / "out" / "name").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(staging, "exchange_names", lambda *_: False)
    with staged_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "name").write_text("new")
    assert (tmp_path / "out" / "name").read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_long_names_still_have_temporary_ones(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 240), "x")
    with staged_folder(tmp_path / ("ü" * 120), overwrite=False):
        pass
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_library_was_writing_when_it_was_killed_is_cleared_too(tmp_path: Path) -> None:
    # safetensors writes to a temporary file of its own, beside the name it is given.
    killed = """
import os, sys
from pathlib import Path
import safetensors.torch
from clipedit.editor.files.whole import save_tensors

def save_half(tensors, path, metadata):
    (Path(path).parent / ".tmpX9a8b7").write_bytes(b"half")
    os._exit(9)

safetensors.torch.save_file = save_half
save_tensors(Path(sys.argv[1]), {}, "test")
"""
    out = tmp_path / "x.safetensors"
    done = subprocess.run([sys.executable, "-c", killed, str(out)], check=False)
    assert done.returncode == 9 and not out.exists() and list(tmp_path.iterdir())
    save_tensors(out, {"a": torch.ones(2)}, "test")
    assert list(tmp_path.iterdir()) == [out]
