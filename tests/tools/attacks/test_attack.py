"""The benchmark that attacks finds every kind of fault that is planted, says how to repeat it, and fails."""
import os
import re
import subprocess
import sys
import tempfile

import pytest

from qwen_image_2.tests.tools.attacks import planted
from qwen_image_2.tools.attacks import watch
from qwen_image_2.tools.attacks.attempt import FAILED, REFUSED, TAKEN, Limits
from qwen_image_2.tools.pack import ROOT

MODULE, SEED, NUMBERS = planted.__name__, 5, range(8)  # at this seed every kind goes wrong once or more
LIMITS = Limits(seconds=1.0)


@pytest.fixture
def attacked(comfyui_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui_path))
    return lambda name, numbers=NUMBERS: watch.attacked(name, SEED, numbers, LIMITS, MODULE)


@pytest.mark.parametrize(("name", "words"), [
    ("traceback", r"KeyError: 'planted \d+'"), ("slow", "It had to be ended"),
    ("long_note", "A message has 401 characters, more than 400"),
    ("long_refusal", "A message has 401 characters, more than 400"),
    ("crash", r"It ended the whole process \(exit code 7\)"),
    pytest.param("growth", r"The memory had grown by [23]\d\d MB, more than 200",
                 marks=pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"))])
def test_a_planted_fault_is_found_and_the_others_are_tried(attacked, name, words):
    record, expected = attacked(name), planted.faulty(name, SEED, NUMBERS)
    assert 0 < len(expected) < len(NUMBERS) and list(record.faults) == expected
    assert record.tried == len(NUMBERS) and record.results[FAILED] == len(expected)
    assert all(re.search(words, "\n".join(faults)) for faults in record.faults.values())
    assert (record.worst > LIMITS.seconds) == (name == "slow")


def test_what_never_comes_back_is_found(attacked):
    """Each keeps 45 MB. After the first three of a process the fifth is a fault, and a new process begins."""
    record = attacked("leak", range(16))
    assert list(record.faults) == [7, 15] and record.growth > LIMITS.growth and record.tried == 16


def test_sound_inputs_are_none(attacked, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    record = attacked("sound")
    assert not list(tmp_path.iterdir())  # the process is ended before it could tidy up
    assert not record.faults and record.results[FAILED] == 0
    assert record.results[TAKEN] and record.results[REFUSED] and 5 < record.longest < 30


def bench(comfyui_path, *arguments: str) -> subprocess.CompletedProcess:
    settings = {**os.environ, "COMFYUI_PATH": str(comfyui_path), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(ROOT / "benchmarks" / "attack.py"), "--module", MODULE, *arguments],
                          env=settings, capture_output=True, text=True, timeout=600)


def test_the_benchmark_fails_and_says_how_to_repeat_it(comfyui_path):
    done = bench(comfyui_path, "--count", "8", "--seed", str(SEED), "--kind", "sound", "--kind", "traceback")
    [first, *_] = expected = planted.faulty("traceback", SEED, NUMBERS)
    assert done.returncode == 1, done.stderr
    assert f"bench attack --kind traceback --seed {SEED} --first {first} --count 1\n" in done.stdout
    assert "KeyError: 'planted" in done.stdout
    rows = {row[0]: row[1:5] for line in done.stdout.splitlines() if line.startswith("|")
            for row in [[cell.strip() for cell in line.strip("|").split("|")]]}
    assert rows["kind"] == ["tried", "taken", "refused", "failed"]
    assert rows["traceback"][3] == str(len(expected)) and rows["sound"][0::3] == ["8", "0"]


def test_one_input_is_repeated_and_sound_kinds_pass(comfyui_path):
    [first, *_] = planted.faulty("traceback", SEED, NUMBERS)
    again = bench(comfyui_path, "--kind", "traceback", "--seed", str(SEED), "--first", str(first), "--count", "1")
    assert again.returncode == 1 and "traceback: 1 tried, 1 failed" in again.stdout
    assert bench(comfyui_path, "--kind", "sound", "--count", "4").returncode == 0


def test_an_unknown_kind_is_refused(comfyui_path):
    done = bench(comfyui_path, "--kind", "nothing")
    assert done.returncode == 1 and "There is no kind 'nothing'; there are: sound, traceback" in done.stderr
