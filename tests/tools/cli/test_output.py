"""Files are written whole or not at all, and never over another one unasked."""

import errno
import os
import shutil

import pytest

from qwen_image_2.tools.cli import output
from qwen_image_2.tools.cli.errors import UserError


def test_new_content_replaces_the_old_and_leaves_nothing_else(tmp_path):
    file = tmp_path / "poster.png"
    file.write_bytes(b"old")
    output.write_whole(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "poster.png"
    file.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="the disk is full"):
        output.write_whole(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_unwritable_place_is_told_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Nothing can be written into"):
        output.require_writable(tmp_path / "file" / "folder")


def test_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"is full \(1 MB free\)"):
        output.require_writable(tmp_path)


def test_taken_names_get_a_number(tmp_path):
    for expected in ("a.png", "a-2.png", "a-3.png"):
        path = output.unused_name(tmp_path, "a.png")
        assert path.name == expected
        path.touch()
