"""Tables: what a cell is in each kind of file, encodings, and what is wrong with a row or with the whole table."""
import io
import json

import pytest

from qwen_image_2.messages import MAX_LENGTH, Refusal
from qwen_image_2.pages import table

HEADER, ROWS = "title,body", [("Sale", "Everything, today"), ('"Quoted"', "two\nlines")]
CSV = 'title,body\nSale,"Everything, today"\n"""Quoted""","two\nlines"\n'


def read(tmp_path, content: str | bytes, name="rows.csv", **more):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return table.read(file, **more)


def texts(found: table.Table) -> list[tuple[str, ...]]:
    return [tuple(row.cells.values()) for row in found.rows]


@pytest.mark.parametrize("name, content", [
    ("rows.csv", CSV), ("rows.CSV", CSV.replace("\n", "\r\n").replace("two\r\n", "two\n")),
    ("rows.csv", 'title;body\nSale;Everything, today\n"""Quoted""";"two\nlines"\n'),
    ("rows.tsv", 'title\tbody\nSale\tEverything, today\n"""Quoted"""\t"two\nlines"\n'),
    ("rows.jsonl", "\n".join(json.dumps(dict(zip(("title", "body"), row))) for row in ROWS) + "\n\n")])
def test_every_kind_gives_the_same_texts(name, content, tmp_path):
    found = read(tmp_path, content, name)
    assert found.columns == ("title", "body") and texts(found) == ROWS
    assert [row.number for row in found.rows] == [1, 2] and not any(row.problem for row in found.rows)


def workbook(rows) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book, file = openpyxl.Workbook(), io.BytesIO()
    for row in rows:
        book.active.append(row)
    book.save(file)
    return file.getvalue()


def test_xlsx(tmp_path):
    import datetime
    values = [("title", "count", "day", "on"), ("Sale", 7.0, datetime.datetime(2026, 5, 1), True), ("Rest",),
              (None,), ("Tea", 0.1, None, None)]
    found = read(tmp_path, workbook(values), "rows.xlsx")
    assert texts(found) == [("Sale", "7", "2026-05-01", "true"), ("Rest", "", "", ""), ("Tea", "0.1", "", "")]
    assert [row.number for row in found.rows] == [1, 2, 4] and not any(row.problem for row in found.rows)


def test_a_formula_is_its_value_or_costs_its_row(tmp_path):
    found = read(tmp_path, workbook([("title", "sum"), ("a", "=1+1"), ("b", 3)]), "rows.xlsx")
    assert [bool(row.problem) for row in found.rows] == [True, False]
    assert "column 'sum': the value of its formula is not in the file" in str(found.rows[0].problem)
    found = read(tmp_path, "title,sum\na,=1+1\nb,3\n")
    assert [bool(row.problem) for row in found.rows] == [True, False]
    assert "Row 1, column 'sum': it begins with \"=\"" in str(found.rows[0].problem)


CHINESE = "title,body\n海港夜市,今晚开市，欢迎光临\n"
WESTERN = "title,body\nCafé crème,à côté de l’école — déjà créée\n"


@pytest.mark.parametrize("text, encoding, name", [
    (CHINESE, "utf-8", table.UTF_8), (CHINESE, "utf-8-sig", table.UTF_8), (CHINESE, "gb18030", table.GB18030),
    (WESTERN, "utf-8-sig", table.UTF_8), (WESTERN, "cp1252", table.WINDOWS),
    ("a,b\nGrüße,Öl\n", "cp1252", table.WINDOWS),
    ("a,b\ncréée,été\n", "cp1252", table.WINDOWS), ("a,b\n镕龘夜市,𠀀港口\n", "gb18030", table.GB18030)])
def test_encodings_tell_themselves_apart(text, encoding, name, tmp_path):
    found = read(tmp_path, text.encode(encoding))
    assert found.encoding == name
    assert texts(found) == [tuple(text.splitlines()[1].split(","))] and found.columns[0] in ("title", "a")


def test_an_encoding_that_is_named_is_taken(tmp_path):
    assert texts(read(tmp_path, "a\né\n".encode("cp1252"), encoding=table.WINDOWS)) == [("é",)]
    with pytest.raises(Refusal, match="is not UTF-8"):
        read(tmp_path, "a\né\n".encode("cp1252"), encoding=table.UTF_8)


@pytest.mark.parametrize("name, content, sentence", [
    ("rows.csv", "a,b\nx\ny,z\n", "Row 1 has 1 cells, the header has 2"),
    ("rows.csv", "a,b\nx,y,z\ny,z\n", "Row 1 has 3 cells, the header has 2"),
    ("rows.csv", f"a,b\n{'x' * 20_001},y\ny,z\n", "Row 1, column 'a': it has 20,001 characters"),
    ("rows.csv", "a,b\nx,\x07\ny,z\n", r"Row 1, column 'b': it has the control character U\+0007"),
    ("rows.jsonl", '{"a": "x"\n{"a": "y", "b": "z"}', "Row 1 cannot be read: it is not JSON"),
    ("rows.jsonl", '[1]\n{"a": "y", "b": "z"}', "Row 1 cannot be read: it is not a JSON object"),
    ("rows.jsonl", '{"a": [1]}\n{"a": "y", "b": "z"}', "Row 1, column 'a': it is a list or an object"),
    ("rows.jsonl", '{"a": "\\u0000"}\n{"a": "y", "b": "z"}', r"U\+0000"),
    ("rows.jsonl", '{"a": "\\ud800"}\n{"a": "y", "b": "z"}', r"U\+D800")])
def test_what_is_wrong_with_a_row_costs_that_row(name, content, sentence, tmp_path):
    first, second = read(tmp_path, content, name).rows
    assert second.problem is None and second.cells == {"a": "y", "b": "z"}
    with pytest.raises(Refusal, match=sentence):
        raise first.problem


@pytest.mark.parametrize("name, content, sentence", [
    ("rows.txt", "a\nb\n", r"its name must end in \.csv, \.tsv"),
    ("rows.csv", "", "has no header"), ("rows.csv", "a,b\n", "has no rows below its header"),
    ("rows.csv", "a,b\n,\n\n", "has no rows below its header"), ("rows.jsonl", "", "has no rows"),
    ("rows.csv", "a,,b\nx,y,z\n", r"Column 2 of rows\.csv has no name"),
    ("rows.csv", "a,a \nx,y\n", "two columns called 'a'"),
    ("rows.csv", "a\nx\0\n", "has NUL bytes"), ("rows.csv", "a,b\nü,y\n".encode("utf-16"), "has NUL bytes"),
    ("rows.csv", 'a,b\n"x,y\n', "cannot be read beyond its line 2"),
    ("rows.csv", ",".join(map(str, range(1001))) + "\n", "has 1001 columns"),
    ("rows.jsonl", "a,b\nx,y\n", "is no JSON Lines file"), ("rows.jsonl", b"\xff\xff\n", "is not UTF-8")])
def test_what_is_no_table_is_one_sentence(name, content, sentence, tmp_path):
    with pytest.raises(Refusal, match=sentence) as refused:
        read(tmp_path, content, name)
    assert len(str(refused.value)) <= MAX_LENGTH


def test_xlsx_that_is_none(tmp_path):
    pytest.importorskip("openpyxl")
    with pytest.raises(Refusal, match="cannot be read as XLSX"):
        read(tmp_path, "a,b\n", "rows.xlsx")
    whole = workbook([("a",), ("b",)])
    with pytest.raises(Refusal, match="cannot be read as XLSX"):
        read(tmp_path, whole[:len(whole) // 2], "rows.xlsx")


def test_without_openpyxl_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match="python -m pip install openpyxl"):
        read(tmp_path, "", "rows.xlsx")


def test_a_large_file_is_not_read(tmp_path):
    file = tmp_path / "rows.csv"
    with open(file, "wb") as sparse:
        sparse.truncate(100_000_000)
    with pytest.raises(Refusal, match="has 100 MB; a table has at most 34 MB"):
        table.read(file)
    with pytest.raises(Refusal, match="cannot be read: No such file"):
        table.read(tmp_path / "none.csv")


def test_placeholders():
    cells = {"title": "Sale {{body}}", "body": "", "two words": "yes"}
    assert table.filled("{{title}}|{{ body }}|{{two words}}|{title}|{{}}", cells) == "Sale {{body}}||yes|{title}|{{}}"
    assert table.columns_in("{{a}} {{ b }} {{a}} {c} {{}}") == ["a", "b"]
    with pytest.raises(Refusal, match="has no column 'tilte', which .* title, body"):
        table.filled("{{tilte}}", cells)


def test_rows_that_say_the_same(tmp_path):
    found = read(tmp_path, "a,b\nx,y\nx,z\nx,y\n\nx,y\n")
    assert table.same_rows(found) == [(1, 3), (1, 5)]
