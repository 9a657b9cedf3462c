"""A few inputs of every kind from outside, always the same: none is a traceback, slow, or told at length.

The long form, with other inputs each time, is `python tools/dev.py bench attack`.
"""
import pytest

from qwen_image_2.tools.attacks import attempt
from qwen_image_2.tools.attacks.attempt import FAILED, REFUSED, TAKEN, Limits
from qwen_image_2.tools.attacks.kinds import KINDS

SEED = 2
COUNT = 40


@pytest.mark.parametrize("name", KINDS)
def test_inputs_are_taken_or_refused(comfyui, tmp_path, monkeypatch, name):
    import folder_paths
    monkeypatch.setattr(folder_paths, "output_directory", folder_paths.get_output_directory())  # kinds set their own
    kind = KINDS[name](tmp_path)
    outcomes = [attempt.attempt(name, kind, SEED, number) for number in range(COUNT)]
    faults = [f"{outcome.number}: {fault}" for outcome in outcomes for fault in outcome.faults(Limits())]
    assert not faults, "\n".join(faults)
    found = {outcome.result for outcome in outcomes}
    assert found == {TAKEN, REFUSED} and FAILED not in found  # inputs that are all taken, or all refused, show little


@pytest.mark.parametrize("name", KINDS)
def test_an_input_is_the_same_whichever_came_before(comfyui, tmp_path, name):
    """Or a fault could not be repeated by its number."""
    (tmp_path / "again").mkdir()
    first, second = KINDS[name](tmp_path), KINDS[name](tmp_path / "again")
    drawn = [attempt.draw(name, first, SEED, number) for number in range(3)]
    assert repr(attempt.draw(name, second, SEED, 2)) == repr(drawn[2])
    assert len({repr(each) for each in drawn}) > 1
