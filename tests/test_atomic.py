"""Files that are complete or not there: what stays, what goes, and what is said where writing is cut short."""
import errno
import os
import stat
import subprocess
import sys

import pytest

from qwen_image_2 import atomic
from qwen_image_2.tools.pack import ROOT


def test_new_content_takes_the_place_of_the_old_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "folder" / "file.bin"
    for content in (b"old", b"new"):
        atomic.write_bytes(path, content)
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]


def test_what_is_being_written_may_be_read_and_is_not_there_yet(tmp_path):
    path = tmp_path / "file.bin"
    with atomic.unfinished(path) as file:
        file.write(b"abc")
        file.seek(1)
        assert file.read() == b"bc" and not path.exists()
    assert path.read_bytes() == b"abc"


@pytest.mark.skipif(os.name == "nt", reason="file modes are POSIX")
def test_the_mode_is_that_of_any_new_file(tmp_path):
    atomic.write_bytes(tmp_path / "file", b"")
    (tmp_path / "plain").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "plain")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("a source cannot be read")])
def test_an_error_on_the_way_is_handed_on_and_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error) if isinstance(error, OSError) else error) as raised, atomic.unfinished(path) as file:
        file.write(b"new")
        raise error
    assert not isinstance(raised.value, atomic.WriteError)  # it was not the writing that failed
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_disk_is_said_to_be_full_where_it_is(tmp_path, monkeypatch):
    """Some systems only notice when the file is flushed."""
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(atomic.WriteError, match=r"^a.bin could not be written: the disk is full. Nothing is") as raised:
        atomic.write_bytes(tmp_path / "a.bin", b"abc")
    assert raised.value.__cause__.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_an_error_without_a_number_is_said_in_its_own_words(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError("the share is gone")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(atomic.WriteError, match=r"^a.bin could not be written: the share is gone. Nothing is"):
        atomic.write_bytes(tmp_path / "a.bin", b"abc")


def test_a_folder_that_cannot_be_made_is_a_failure_to_write(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(atomic.WriteError, match=r"^a.bin could not be written: "):
        atomic.write_bytes(tmp_path / "file" / "a.bin", b"abc")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pack import load_pack
load_pack()
from qwen_image_2 import atomic

with atomic.unfinished(Path(sys.argv[2])) as file:
    file.write(bytes(10**6))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_kill_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-S", "-c", KILLED, ROOT / "tools", path], timeout=120)
    assert done.returncode == -9
    assert path.read_bytes() == b"old"
