"""Repair Text with stand-ins for the reader and the sampler: what keeps its bits, what is handed on and refused."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from qwen_image_2.messages import Refusal
from qwen_image_2.model.images.boxes import Box
from qwen_image_2.pages import compare, ocr
from qwen_image_2.pages.layout import Box as PageBox
from qwen_image_2.pages.layout import Layout
from qwen_image_2.pages.repair import Region, Written

WORD = Box(60, 30, 140, 50)
DEFAULTS = {"expected_text": "OPEN", "attempts": 3, "seed": 5, "preset": "Custom", "steps": 1, "cfg": 1.0,
            "negative_prompt": "", "instruction": "", "letters": True, "font": "Noto Sans (built-in)", "context": 0.5,
            "resolution": "128", "feather": 6, "match_case": False, "match_punctuation": False, "tolerance": 0.0,
            "allow_extra": False}


@pytest.fixture
def node(comfyui, monkeypatch):
    """The node; `good`: the number of the edit (its seed minus the first) after which the word reads right; `seeds` and
    `shown`: of each edit, the references as the model would see them."""
    from comfy_api.latest import io

    from qwen_image_2.nodes import repair_text
    from qwen_image_2.nodes.common.region_edits import RegionEditor

    class Node:
        good, seeds, shown, read = 0, [], [], []

        def run(self, image, **changes):
            kind = repair_text.QwenImage2RepairText
            kind.hidden = io.HiddenHolder(unique_id=None, prompt=None, extra_pnginfo=None, dynprompt=None,
                                          auth_token_comfy_org=None, api_key_comfy_org=None)
            return kind.execute(model=None, clip=None, vae=None, image=image, **DEFAULTS | changes).result

    made = Node()
    made.seeds, made.shown, made.read = [], [], []

    def edited(self, shown, region, size, seed):
        made.seeds.append(seed)
        made.shown.append([image.clone() for image in shown])
        value = 1.0 if seed - 5 == made.good else 0.5
        return torch.full((1, size[1], size[0], 4), value)

    def read(image, factor=1.0):
        made.read.append(image)
        right = image[40, 100].min() == 255
        return [compare.Found("OPEN" if right else "OPEM", WORD)]

    monkeypatch.setattr(repair_text, "check_parts", lambda *_: None)
    for name in ("variant_warning", "guidance_note", "shift_note"):
        monkeypatch.setattr(repair_text, name, lambda *_: None)
    monkeypatch.setattr(RegionEditor, "_size", lambda self, crop: (128, 96))
    monkeypatch.setattr(RegionEditor, "_edited", edited)
    monkeypatch.setattr(ocr, "read", read)
    monkeypatch.setattr(ocr, "require", lambda: None)
    monkeypatch.setattr(ocr, "known_characters", lambda: frozenset("OPENMX"))
    return made


def image(channels=3):
    return torch.rand(1, 100, 200, channels, generator=torch.Generator().manual_seed(2)) * 0.9


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("feather", [0, 6])
def test_outside_of_what_was_repaired_no_bit_changes(node, channels, feather):
    before = image(channels)
    if channels == 4:
        before[..., 3] = 1
    after, report, score, passed, repaired = node.run(before, feather=feather)
    assert passed and score == 1 and len(node.seeds) == 1
    region = Box(WORD.left - 6, WORD.top - 6, WORD.right + 6, WORD.bottom + 6)  # grown by 0.3 of its height
    where = torch.zeros(1, 100, 200)
    where[:, region.top - feather:region.bottom + feather, region.left - feather:region.right + feather] = 1
    assert torch.equal(repaired, where)
    assert torch.equal(after[repaired == 0], before[repaired == 0])
    assert (after[0, region.top:region.bottom, region.left:region.right] == 1).all()
    assert json.loads(report)["rounds"][0]["regions"][0]["box"] == list(region)


def test_rounds_have_their_own_seeds_and_what_is_no_better_is_dropped(node):
    node.good = 2
    before = image()
    after, report, _, passed, _ = node.run(before)
    assert passed and node.seeds == [5, 6, 7] and (after[0, 40, 100] == 1).all()
    node.good, node.seeds = 9, []
    after, report, score, passed, repaired = node.run(before, attempts=2)
    assert not passed and node.seeds == [5, 6] and torch.equal(after, before) and not repaired.any()
    assert score == json.loads(report)["score_before"] < 1


def test_the_second_reference_has_the_right_letters_in_their_place(node):
    node.run(image())
    (part, letters), = node.shown
    assert part.shape == letters.shape == (1, 96, 128, 4)
    rows, columns = np.nonzero((letters[0, ..., 0] < 0.5).numpy())
    # The crop is the region with its feather and half of its width around it: 9 to 191 across, all of the height.
    assert 35 < columns.min() < 60 and 70 < columns.max() < 95 and rows.min() > 25 and rows.max() < 55
    node.shown = []
    node.run(image(), letters=False)
    assert len(node.shown[0]) == 1


def test_a_layout_replaces_the_expected_text(node):
    boxes = (PageBox("sign", "text", "OPEN", 0.2, 0.2, 0.6, 0.4),)
    _, report, _, passed, repaired = node.run(image(), expected_text="", layout=Layout(1024, 512, boxes))
    assert passed and json.loads(report)["check"]["lines"][0]["box"] == [40, 20, 160, 60] and repaired[0, 20, 45] == 1
    with pytest.raises(Refusal, match="The layout has no text to look for"):
        node.run(image(), layout=Layout(1024, 512, ()))
    outside = [{"type": "text", "text": "OPEN", "bbox": [0, 0, 100, 1100]}]
    with pytest.raises(Refusal, match="'text 1' reaches over the edge of the page"):
        node.run(image(), layout=outside)


@pytest.mark.parametrize("changes, sentence", [
    ({"attempts": 0}, "The number of attempts must be between 1 and 20, got 0."),
    ({"expected_text": " "}, "Expected text is empty"),
    ({"cfg": 31.0}, "CFG must be between 1 and 30"),
])
def test_what_is_refused(node, changes, sentence):
    with pytest.raises(Refusal, match=f"^{sentence}"):
        node.run(image(), **changes)
    assert not node.seeds and not node.read


@pytest.mark.parametrize("picture, sentence", [
    (torch.zeros(2, 100, 200, 3), "Got a batch of 2 images; words are repaired in one image at a time"),
    (torch.zeros(0, 100, 200, 3), "Got a batch of 0 images|The image is empty"),
    (torch.zeros(1, 100, 200, 1), "The image has shape .* accepts RGB and RGBA"),
    (torch.full((1, 100, 200, 3), float("nan")), "The image contains NaN"),
])
def test_what_is_no_single_image(node, picture, sentence):
    with pytest.raises(Refusal, match=sentence):
        node.run(picture)


def test_a_missing_reader_is_told_before_anything_runs(comfyui, monkeypatch):
    from qwen_image_2.nodes.repair_text import QwenImage2RepairText
    monkeypatch.setattr(ocr, "find_spec", lambda name: None)
    assert "RapidOCR" in QwenImage2RepairText.validate_inputs(expected_text="A", attempts=1, cfg=1.0)


def test_before_anything_runs(comfyui):
    from qwen_image_2.nodes.repair_text import QwenImage2RepairText
    check = QwenImage2RepairText.validate_inputs
    assert "attempts must be between" in check(expected_text="A", attempts=0, cfg=1.0)
    assert "Expected text is empty" in check(expected_text="", attempts=1, cfg=1.0)
    assert check(expected_text="", attempts=1, cfg=1.0, layout=None) is True  # linked, and not yet known
    assert check(expected_text=None, attempts=None, cfg=None) is True


def test_cancelling_stops_between_edits(node):
    import comfy.model_management as management
    node.good = 9
    from qwen_image_2.nodes.common.region_edits import RegionEditor
    plain = RegionEditor._edited

    def cancelled(self, *arguments):
        management.interrupt_current_processing()
        return plain(self, *arguments)

    RegionEditor._edited = cancelled
    try:
        with pytest.raises(management.InterruptProcessingException):
            node.run(image())
    finally:
        RegionEditor._edited = plain
        management.interrupt_current_processing(False)
    assert node.seeds == [5]


def test_edits_are_off_the_size_at_which_they_fail(comfyui, monkeypatch):
    from qwen_image_2.nodes.bridge.keys import FAMILY_1, FAMILY_2
    from qwen_image_2.nodes.common import region_edits
    monkeypatch.setattr(region_edits, "family_of", lambda vae: vae)
    editor = region_edits.RegionEditor(None, None, None, "", "", 0, "", 1, 1.0, 0.5, 1024, 0, None, print)
    for family, side in ((FAMILY_1, 1024), (FAMILY_2, 1056)):
        assert replace(editor, vae=family)._size(Box(0, 0, 50, 50)) == (side, side)
    assert replace(editor, vae=FAMILY_2)._size(Box(0, 0, 100, 50)) == (1440, 736)


def test_a_region_without_words_gets_no_letters(comfyui):
    from qwen_image_2.nodes.common.region_edits import RegionEditor
    from qwen_image_2.pages.page_fonts import Fonts
    editor = RegionEditor(None, None, None, "", "", 0, "", 1, 1.0, 0.5, 128, 0, Fonts(), print)
    crop = Box(0, 0, 100, 50)
    assert editor._letters(Region(WORD, ()), crop, (128, 64)) == []
    page, = editor._letters(Region(WORD, (Written("OPEN", Box(10, 10, 60, 40)),)), crop, (128, 64))
    assert page.shape == (1, 64, 128, 4) and page[..., :3].min() < 0.2
