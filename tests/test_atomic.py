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


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_the_next_writer_of_that_name_removes_what_a_kill_left(tmp_path, caplog):
    path, others = tmp_path / "file.bin", [tmp_path / name for name in ("file.bin.part", "other.bin.abcd1234.part")]
    subprocess.run([sys.executable, "-S", "-c", KILLED, ROOT / "tools", path], timeout=120)
    left, = tmp_path.iterdir()
    for other in others:  # a download of somebody else's, and another file's
        other.touch()
    with caplog.at_level("INFO"):
        atomic.write_bytes(path, b"new")
    assert {*tmp_path.iterdir()} == {path, *others} and path.read_bytes() == b"new"
    assert f"Removed {left.name}, which a killed process had left." in caplog.text


def test_what_is_still_being_written_is_not_removed(tmp_path):
    path = tmp_path / "file.bin"
    with atomic.unfinished(path) as slow:
        slow.write(b"slow")
        atomic.write_bytes(path, b"quick")
        assert path.read_bytes() == b"quick" and len([*tmp_path.iterdir()]) == 2
    assert path.read_bytes() == b"slow" and [*tmp_path.iterdir()] == [path]


# ---------------------------------------------------------------- names with a number

NUMBERED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pack import load_pack
load_pack()
from qwen_image_2 import atomic

sys.stdin.readline()  # all begin together
for _ in range(15):
    with atomic.numbered(Path(sys.argv[2]), "deck", 1, [".pptx", ".pdf"]) as paths:
        for path in paths:
            atomic.write_bytes(path, sys.argv[3].encode())
"""


def test_four_servers_in_one_folder_replace_nothing(tmp_path):
    servers = [subprocess.Popen([sys.executable, "-S", "-c", NUMBERED, ROOT / "tools", tmp_path, str(number)],
                                stdin=subprocess.PIPE) for number in range(4)]
    for server in servers:
        server.stdin.write(b"\n")
        server.stdin.flush()
    assert [server.wait(timeout=120) for server in servers] == [0] * 4
    for suffix in (".pptx", ".pdf"):
        files = sorted(tmp_path.glob(f"*{suffix}"))
        assert [file.name for file in files] == [f"deck_{number:05}_{suffix}" for number in range(1, 61)]
        written = [file.read_text() for file in files]
        assert all(written.count(str(server)) == 15 for server in range(4))
    assert [(tmp_path / f"deck_{n:05}_.pptx").read_text() for n in range(1, 61)] == written  # pairs belong together
    assert len([*tmp_path.iterdir()]) == 120


def test_a_number_is_free_again_where_nothing_came_of_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic.numbered(tmp_path, "a[1]", 1, [".pdf"]):
        raise KeyboardInterrupt
    assert not [*tmp_path.iterdir()]
    (tmp_path / "a[1]_00001_.pptx").touch()
    (tmp_path / "a[1]_00002_.pdf").touch()
    with atomic.numbered(tmp_path, "a[1]", 1, [".pdf", ".pptx"]) as paths:
        assert [path.name for path in paths] == ["a[1]_00003_.pdf", "a[1]_00003_.pptx"]


def test_what_a_killed_save_left_of_a_number_goes(tmp_path):
    left = ["deck(1)_00003_.part", "deck(1)_00003_.pdf.abcd1234.part"]
    others = ["deck(1)_00003_.pptx.abcd1234.part", "deck(1)_00003_x.part", "deck(1)_notes_00003_.part", "deck(1).part"]
    for name in left + others:
        (tmp_path / name).touch()
    with atomic.numbered(tmp_path, "deck(1)", 1, [".pdf"]):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {*others}


def test_a_folder_that_cannot_be_written_is_told_without_its_path(tmp_path, monkeypatch):
    """Nobody is refused anything where tests run as the superuser."""
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(atomic.WriteError) as raised, atomic.numbered(tmp_path, "deck", 1, [".pdf"]):
        pass
    assert str(raised.value).startswith("deck_00001_ could not be written: Permission denied.")
    assert str(tmp_path) not in str(raised.value)
