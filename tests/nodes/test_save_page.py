"""Save Page: PNG files, and PSD files with layers that open again."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from psd_tools import PSDImage

from qwen_image_2.model.images.layers import alpha_over
from qwen_image_2.tests.nodes.test_decks import validate


@pytest.fixture
def saver(comfyui, monkeypatch):
    from qwen_image_2.nodes import save_page
    hidden = SimpleNamespace(unique_id=None, prompt={"1": {"class_type": "X", "inputs": {}}},
                             extra_pnginfo={"workflow": {"nodes": []}})
    monkeypatch.setattr(save_page.QwenImage2SavePage, "hidden", hidden, raising=False)
    return save_page


@pytest.fixture
def folder(saver, monkeypatch, tmp_path):
    import folder_paths
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def save(saver, image, format, name="page"):
    return saver.QwenImage2SavePage.execute(image, name, format).ui


def layers(kind: str, count: int = 3) -> torch.Tensor:
    made = torch.rand(count, 40, 50, 4, generator=torch.Generator().manual_seed(0))
    if kind == "on an opaque one":
        made[0, ..., 3] = 1
    if kind == "with holes":
        made[:, :9, :, 3] = 0
    return made


def values(picture) -> np.ndarray:
    return np.asarray(picture).astype(int)


def eight_bits(image: torch.Tensor) -> np.ndarray:
    return (image * 255).round().numpy().astype(int)


def rounded(image: torch.Tensor) -> torch.Tensor:
    """As they are saved, in [0, 1]."""
    return (image * 255).round() / 255


@pytest.mark.parametrize("kind", ["on an opaque one", "with holes", "transparent"])
def test_a_psd_has_the_layers_by_name_and_what_they_show(saver, folder, kind):
    made = layers(kind)
    saved, = save(saver, made, "psd", "pages/harbour")["files"]
    assert saved == {"filename": "harbour_00001_.psd", "subfolder": "pages", "type": "output"}
    path = folder / "pages" / saved["filename"]
    document = PSDImage.open(path)
    assert [layer.name for layer in document] == ["Layer 1", "Layer 2", "Layer 3"]  # the lowest first
    for layer, expected in zip(document, made, strict=True):
        assert layer.is_visible() and np.array_equal(values(layer.topil()), eight_bits(expected))
    with Image.open(path) as flattened:  # as a program sees it that knows no layers
        assert flattened.mode == "RGBA" and flattened.size == (50, 40)
        found = torch.from_numpy(values(flattened)) / 255
    for composite in [alpha_over(rounded(made))[0], *([alpha_over(made)[0]] if kind == "on an opaque one" else [])]:
        assert np.abs(eight_bits(found) - eight_bits(composite))[composite[..., 3] > 0].max() <= 1
        assert np.abs(eight_bits(found) - eight_bits(composite))[..., 3].max() <= 1
    assert list(folder.rglob("*.part")) == []


def test_pictures_without_transparency_are_opaque_layers(saver, folder):
    image = torch.rand(2, 16, 24, 3, generator=torch.Generator().manual_seed(1))
    save(saver, image, "psd")
    first, second = PSDImage.open(folder / "page_00001_.psd")
    assert np.array_equal(values(second.topil())[..., :3], eight_bits(image[1]))
    assert values(first.topil())[..., 3].min() == 255
    with Image.open(folder / "page_00001_.psd") as flattened:
        assert np.abs(values(flattened)[..., :3] - eight_bits(image[1])).max() <= 1


def test_a_png_for_each_picture_with_the_workflow_inside(saver, folder):
    made = layers("transparent")
    files = save(saver, made, "png")["images"]
    assert [file["filename"] for file in files] == [f"page_0000{number}_.png" for number in (1, 2, 3)]
    for file, expected in zip(files, made, strict=True):
        with Image.open(folder / file["filename"]) as image:
            assert np.array_equal(values(image), eight_bits(expected))
            assert json.loads(image.info["prompt"])["1"]["class_type"] == "X"
            assert json.loads(image.info["workflow"]) == {"nodes": []}


def test_no_workflow_where_comfyui_was_told_so(saver, folder, monkeypatch):
    monkeypatch.setattr(saver.args, "disable_metadata", True)
    save(saver, torch.rand(1, 16, 16, 3), "png")
    with Image.open(folder / "page_00001_.png") as image:
        assert image.mode == "RGB" and "prompt" not in image.info


def test_names_and_formats_are_checked_before_anything_runs(saver):
    node = saver.QwenImage2SavePage
    assert validate(node, filename_prefix="page", format="psd") is validate(node, filename_prefix=None, format=None)
    assert "outside ComfyUI's output folder" in validate(node, filename_prefix="../page", format="png")
    refused = validate(node, filename_prefix="page", format="tiff")
    assert refused == "Unknown format 'tiff'; choose one of png, psd, pdf."


def test_without_psd_tools_one_sentence_before_anything_runs(saver, folder, monkeypatch):
    from qwen_image_2.pages import psd
    monkeypatch.setattr(psd, "find_spec", lambda name: None)
    sentence = validate(saver.QwenImage2SavePage, filename_prefix="page", format="psd")
    assert 'python -m pip install "psd-tools>=1.20"' in sentence and "\n" not in sentence
    with pytest.raises(ValueError, match="psd-tools, which is not installed"):
        save(saver, torch.rand(1, 16, 16, 3), "psd")
    save(saver, torch.rand(1, 16, 16, 3), "png")
    assert [path.name for path in folder.iterdir()] == ["page_00001_.png"]


def test_a_file_that_cannot_be_written_leaves_nothing(saver, folder, monkeypatch):
    from qwen_image_2.atomic import WriteError
    from qwen_image_2.pages import psd

    def full(file, layers, flattened):
        file.write(b"8BPS")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(psd, "write_psd", full)
    with pytest.raises(WriteError, match="the disk is full"):
        save(saver, torch.rand(1, 16, 16, 4), "psd")
    assert list(folder.iterdir()) == []


def test_a_pdf_has_a_page_for_each_image_and_the_words_of_its_layout(saver, folder):
    from qwen_image_2.pages.layout import Box, Layout
    layout = Layout(160, 96, (Box("title", "title", "Tea 茶", 0.1, 0.1, 0.5, 0.3, 0.2, weight="bold"),))
    (saved,) = saver.QwenImage2SavePage.execute(torch.ones(2, 96, 160, 3), "page", "pdf", layout).ui["files"]
    content = (folder / saved["filename"]).read_bytes()
    assert saved["filename"] == "page_00001_.pdf" and content.startswith(b"%PDF")
    pytest.importorskip("fpdf", reason="fpdf2 is not installed: pip install fpdf2")
    pdfium = pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed: pip install pypdfium2")
    document = pdfium.PdfDocument(content)
    assert [page.get_textpage().get_text_range() for page in document] == ["Tea 茶"] * 2
    assert np.asarray(document[0].render().to_pil()).min() > 250  # the words are the picture's, or unseen
