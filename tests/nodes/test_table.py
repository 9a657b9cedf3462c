"""The Table node, and rows in the texts of briefs."""
import json

import pytest

from qwen_image_2.messages import Refusal
from qwen_image_2.tests.nodes.test_briefs import COMMON, OWN
from qwen_image_2.tools.pack import ROOT

GIVEN = {"file": "rows.csv", "columns": "", "text": "", "name": "page_{{row}}", "first": 1, "count": 100, "seed": 5,
         "encoding": "auto"}


@pytest.fixture
def node(comfyui, tmp_path, monkeypatch):
    """The node, with ComfyUI's input folder at tmp_path, and a table there."""
    import folder_paths

    from qwen_image_2.nodes.table import QwenImage2Table
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    (tmp_path / "rows.csv").write_text("title,place\nSALE,{{title}}\n,\nTEA,\nNEW,Pier 4\n")
    return QwenImage2Table


@pytest.fixture
def read(node, monkeypatch):
    """Runs the node; returns its outputs and what it said."""
    from qwen_image_2.nodes import table

    def run(**changes):
        said = []
        monkeypatch.setattr(table, "notify", lambda node, *messages: said.extend(map(str, messages)))
        return node.execute(**GIVEN | changes).result, said
    return run


def test_rows_texts_names_and_seeds(read):
    (rows, texts, names, seeds, count), said = read(text="{{title}} at {{place}}")
    assert [row["title"] for row in rows] == ["SALE", "TEA", "NEW"] and count == 3
    assert texts == ["SALE at {{title}}", "TEA at ", "NEW at Pier 4"]  # a cell is not looked into
    assert (names, seeds) == (["page_1", "page_3", "page_4"], [5, 6, 7])
    assert said == ["rows.csv: 3 rows read, 2 columns, encoding UTF-8."]


def test_a_part_of_the_rows(read):
    (rows, _, names, seeds, _), said = read(first=2, count=1)
    assert (names, seeds) == (["page_3"], [5]) and rows[0]["title"] == "TEA"
    assert said[1] == "1 more rows from row 4 on are left out; python tools/dev.py render takes them all."


def test_a_column_of_seeds(read, tmp_path):
    (tmp_path / "rows.csv").write_text(f"title,seed\na,7\nb,\nc,{2 ** 64 - 1}\n")
    assert read()[0][3] == [7, 6, 2 ** 64 - 1]


@pytest.mark.parametrize("changes, content, sentence", [
    ({"file": "none.csv"}, None, "cannot be read: No such file"), ({"file": "../rows.csv"}, None, "points outside"),
    ({"columns": "place"}, None, "Row 3 is empty in 'place'"), ({"columns": "palce"}, None, "no column 'palce'"),
    ({"text": "{{palce}}"}, None, "no column 'palce', .* row, title, place"), ({"first": 5}, None, "has no row 5"),
    ({"name": "x"}, None, "Rows 1 and 3 have the same file name 'x'"), ({"name": "../{{row}}"}, None, "points outside"),
    ({"name": "{{place}}"}, None, "not a valid file name"), ({"encoding": "KOI8-R"}, None, "Unknown encoding"),
    ({}, "title,seed\na,x\n", "Row 1: 'x' is not a seed"), ({}, "title\n=A1\n", "Row 1, column 'title'"),
    ({}, "title\n", "has no rows"), ({}, f"a,seed\na,{2 ** 64}\n", "is not a seed")])
def test_bad_tables_are_refused_before_anything_runs(node, changes, content, sentence, tmp_path):
    if content:
        (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(Refusal, match=sentence):
        node.execute(**GIVEN | changes)
    assert node.validate_inputs(**GIVEN | changes) is not True
    assert node.validate_inputs(**GIVEN | {"file": None}) is True  # linked, and not yet known


def test_another_content_is_another_result(node, tmp_path):
    before = node.fingerprint_inputs(**GIVEN)
    (tmp_path / "rows.csv").write_text("title\na\n")
    assert node.fingerprint_inputs(**GIVEN) != before and node.fingerprint_inputs(**GIVEN | {"file": "none"}) == []


def test_the_example_comes_with_the_pack(read, node, tmp_path):
    (rows, _, _, seeds, _), _ = read(file="built-in example", columns="title, place, date, colour")
    assert len(rows) == 3 and seeds == [11, 12, 13]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "other.XLSX").touch()
    (file,) = (each for each in node.define_schema().inputs if each.id == "file")
    assert file.options == ["built-in example", "rows.csv", "sub/other.XLSX"]


@pytest.mark.parametrize("name", OWN)
def test_a_row_fills_every_text_of_a_brief(comfyui, name, monkeypatch):
    from qwen_image_2.nodes import briefs
    monkeypatch.setattr(briefs, "notify", lambda node, *messages: {})
    node = getattr(briefs, name)
    title = {"title": "{{title}}"} | ({"panels": "A pier.\nMia: {{title}}"} if "Comic" in name else {})
    inputs = OWN[name] | COMMON | title | {"picture": "a {{thing}}"}
    prompt, _, _, expected, *_ = node.execute(**inputs, row={"title": "PIER 4", "thing": "gull"}).result
    assert "PIER 4" in expected and "a gull" in prompt
    assert node.execute(**inputs).result[3] != expected  # without a row, braces are what they are
    with pytest.raises(Refusal, match="no column 'thing'"):
        node.execute(**inputs, row={"title": "PIER 4"})


def test_a_row_fills_an_outline(comfyui, monkeypatch):
    from qwen_image_2.nodes import decks
    monkeypatch.setattr(decks, "notify", lambda node, *messages: {})
    graph = json.loads((ROOT / "workflows" / "api" / "slides_deck.json").read_text(encoding="utf-8"))
    (inputs,) = (entry["inputs"] for entry in graph.values() if entry["class_type"] == "QwenImage2DeckOutline")
    made = decks.QwenImage2DeckOutline.execute(**inputs | {"outline": "# {{who}}"}, row={"who": "Ada"}).result
    assert made[3] == ["Ada"]
