"""A table -> rows of texts for `{{column}}`: CSV, TSV, JSON Lines and XLSX.

A cell is a text. What is wrong with one cell is kept with its row, so that whoever reads thousands of rows loses one;
what is wrong with the whole table is refused. Rows are counted from 1, without the header and with empty rows.

openpyxl is an optional extra, so it is imported when an XLSX file is read and not before.
"""
import csv
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..messages import Message, Refusal
from .xlsx import cells_of_sheet

MAX_BYTES = 2 ** 25      # of a file: ten thousand rows with a page of text each
MAX_UNPACKED = 2 ** 28   # of an XLSX file, which is a ZIP archive
MAX_ROWS = 100_000
MAX_COLUMNS = 1000
MAX_CELL = 20_000        # characters; ten times a long prompt
NAMED = 10               # columns or rows that a message names one by one

AUTO, UTF_8, GB18030, WINDOWS = "auto", "UTF-8", "GB18030", "Windows-1252"
ENCODINGS = {UTF_8: "utf-8-sig", GB18030: "gb18030", WINDOWS: "cp1252"}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".xlsx")
INSTALL = "python -m pip install openpyxl"

PLACEHOLDER = re.compile(r"\{\{([^{}\n]+)\}\}")
# Two bytes of GB18030 that ordinary Chinese is made of: punctuation and full-width forms, and the 3,755 most frequent
# characters (GB 2312, level 1). Western letters with accents stand alone, and their small ones begin above these.
FREQUENT_CHINESE = re.compile(rb"[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]")
ALL_DOUBLE = re.compile(rb"[\x81-\xfe][\x30-\x39\x40-\x7e\x80-\xfe]")
NOT_PRINTED = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    number: int
    cells: Mapping[str, str]  # column -> text
    problem: Refusal | None = None  # why no page can be made of it


@dataclass(frozen=True)
class Table:
    name: str  # of the file
    columns: tuple[str, ...]
    rows: tuple[Row, ...]  # those that are not empty
    encoding: str = UTF_8


# What a reader hands over: a row's number and its cells. A cell that cannot be a text is the reason why.
Cells = list[str | Message]
Numbered = Iterator[tuple[int, Cells]]


# ---------------------------------------------------------------- placeholders

def columns_in(text: str) -> list[str]:
    """The columns that `{{column}}` in a text names, each once."""
    return list(dict.fromkeys(name.strip() for name in PLACEHOLDER.findall(text)))


def filled(text: str, cells: Mapping[str, str]) -> str:
    """The text with each `{{column}}` replaced. A cell is not looked into: braces in it stay. Raises Refusal for a
    column that the row does not have."""
    require_columns(columns_in(text), list(cells))
    return PLACEHOLDER.sub(lambda found: cells[found[1].strip()], text)


def require_columns(wanted: Iterable[str], there: Iterable[str]) -> None:
    """Raises Refusal where a column is named that is not there."""
    known = list(there)
    if lacking := [name for name in dict.fromkeys(wanted) if name not in known]:
        raise Refusal("table_column", "The table has no column {columns}, which a text names in double braces. Its "
                      "columns are {known}.", columns=[repr(name) for name in lacking], known=known)


def same_rows(table: Table) -> list[tuple[int, int]]:
    """Numbers of rows that say the same as an earlier one: (that one, the row)."""
    first: dict[tuple[str, ...], int] = {}
    pairs = [(first.setdefault(tuple(row.cells.values()), row.number), row.number)
             for row in table.rows if not row.problem]
    return [(one, other) for one, other in pairs if one != other]


# ---------------------------------------------------------------- reading

def read(path: Path, encoding: str = AUTO) -> Table:
    """The table in a file; its first row (of JSON Lines: the names in the objects) names the columns.

    encoding: of CSV and TSV. Raises Refusal for what is no table, and for one without rows.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise Refusal("table_kind", "{file} is not a table that can be read: its name must end in {known}.",
                      file=path.name, known=", ".join(SUFFIXES))
    content = _content(path)
    if kind == ".xlsx":
        _require_openpyxl()
        columns, rows = _table_of(path.name, _sheet(path.name, content), padded=True)
        encoding = UTF_8
    elif kind in (".csv", ".tsv"):
        text, encoding = _decoded(path.name, content, encoding)
        columns, rows = _table_of(path.name, _records(path.name, text, "\t" if kind == ".tsv" else ""))
    else:
        text, encoding = _decoded(path.name, content, UTF_8)
        columns, rows = _json_lines(path.name, text)
    if not rows:
        raise Refusal("table_empty", "{file} has no rows below its header; nothing would be made of it.",
                      file=path.name)
    return Table(path.name, columns, rows, encoding)


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise Refusal("table_large", "{file} has {size} MB; a table has at most {max} MB. Split it, and keep "
                          "pictures out of it.", file=path.name, size=f"{size / 1e6:.0f}", max=f"{MAX_BYTES / 1e6:.0f}")
        return path.read_bytes()
    except OSError as error:
        raise Refusal("table_unreadable", "The table {file} cannot be read: {reason}.", file=path.name,
                      reason=str(error.strerror or error)) from error


def _decoded(name: str, content: bytes, encoding: str) -> tuple[str, str]:
    """The text, and the name of the encoding that it was read as."""
    if b"\0" in content:  # also all of UTF-16, as Excel's "Unicode text"
        raise Refusal("table_nul", "{file} has NUL bytes, so it is no text in a known encoding. Save it as "
                      "\"CSV UTF-8\".", file=name)
    for candidate in _candidates(content) if encoding == AUTO else [encoding]:
        try:
            return content.decode(ENCODINGS[candidate]), candidate
        except UnicodeDecodeError:
            continue
    raise Refusal("table_encoding", "{file} is not {encoding}. Choose another encoding, or save it as \"CSV UTF-8\".",
                  file=name, encoding=" / ".join(ENCODINGS) if encoding == AUTO else encoding)


def _candidates(content: bytes) -> list[str]:
    """UTF-8 tells itself apart from the others. Those two read nearly every file, so what their letters would be
    decides: Chinese is mostly made of its frequent characters, Western letters read as Chinese are not."""
    double = len(ALL_DOUBLE.findall(content))
    chinese = double > 0 and 2 * len(FREQUENT_CHINESE.findall(content)) >= double
    return [UTF_8, GB18030, WINDOWS] if chinese else [UTF_8, WINDOWS, GB18030]


def _records(name: str, text: str, separator: str) -> Numbered:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator or _separator(text), strict=True)
    try:
        for number, record in enumerate(reader):
            yield number, [_formula_or_text(cell) for cell in record]
    except csv.Error as error:
        raise Refusal("table_quotes", "{file} cannot be read beyond its line {number}: {reason}. Look at the quotation "
                      "marks above it.", file=name, number=reader.line_num, reason=str(error)) from error


def _separator(text: str) -> str:
    """Excel separates by semicolons where the comma is the decimal sign; the header shows which."""
    header = text.lstrip().partition("\n")[0]
    return max((",", ";", "\t"), key=header.count)


def _formula_or_text(cell: str) -> str | Message:
    """Nothing is calculated: a formula in a CSV file would be drawn as it stands."""
    if cell.startswith("="):
        return Message("cell_formula", "it begins with \"=\" like a formula, and nothing is calculated here; write its "
                       "value instead")
    return cell


def _require_openpyxl() -> None:
    if find_spec("openpyxl") is None:
        raise Refusal("xlsx_missing", "XLSX files need openpyxl, which is not installed. Run {command} with ComfyUI's "
                      "Python and restart it, or save the table as \"CSV UTF-8\".", command=INSTALL)


def _sheet(name: str, content: bytes) -> Numbered:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_UNPACKED:
            raise Refusal("xlsx_large", "{file} unpacks to {size} MB; the maximum is {max} MB. Save the one sheet that "
                          "is needed.", file=name, size=f"{unpacked / 1e6:.0f}", max=f"{MAX_UNPACKED / 1e6:.0f}")
        yield from cells_of_sheet(content)
    except Refusal:
        raise
    except Exception as error:  # whatever openpyxl and its parsers raise for a damaged file
        raise Refusal("xlsx_damaged", "{file} cannot be read as XLSX ({reason}). Open it and save it anew.", file=name,
                      reason=f"{type(error).__name__}: {error}") from error


def _table_of(name: str, records: Numbered, padded: bool = False) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """Columns and rows; the first record names the columns. padded: cells that a record lacks at its end are empty."""
    _, header = next(records, (0, []))
    columns = _columns(name, header)
    rows = []
    for number, cells in records:
        if number > MAX_ROWS:
            raise _too_many(name)
        if any(cells):
            missing = len(columns) - len(cells) if padded else 0
            rows.append(_row(number, columns, [*cells, *[""] * missing]))
    return columns, tuple(rows)


def _too_many(name: str) -> Refusal:
    return Refusal("table_rows", "{file} has more than {max} rows. Split it.", file=name, max=f"{MAX_ROWS:,}")


def _columns(name: str, header: Cells) -> tuple[str, ...]:
    """The names, without empty ones at the end, which spreadsheets leave behind."""
    columns = [str(cell).strip() for cell in header]
    while columns and not columns[-1]:
        columns.pop()
    if not columns:
        raise Refusal("table_header", "{file} has no header: its first row must name the columns.", file=name)
    if len(columns) > MAX_COLUMNS:
        raise Refusal("table_columns", "{file} has {count} columns; the maximum is {max}.", file=name,
                      count=len(columns), max=MAX_COLUMNS)
    if "" in columns:
        raise Refusal("table_unnamed", "Column {number} of {file} has no name, so no text can ask for it. Name it in "
                      "the first row.", number=columns.index("") + 1, file=name)
    if twice := [column for column in dict.fromkeys(columns) if columns.count(column) > 1]:
        raise Refusal("table_twice", "{file} has two columns called {columns}; a text could mean either. Rename one.",
                      file=name, columns=[repr(column) for column in twice])
    return tuple(columns)


def _row(number: int, columns: tuple[str, ...], cells: Cells) -> Row:
    beyond = any(cells[len(columns):])
    texts = dict(zip(columns, (str(cell) for cell in cells)))
    if len(cells) < len(columns) or beyond:
        problem = Refusal("row_cells", "Row {number} has {count} cells, the header has {columns}. Put texts with the "
                          "separator in them in quotation marks.", number=number, count=len(cells),
                          columns=len(columns))
        return Row(number, dict.fromkeys(columns, "") | texts, problem)
    return _checked(number, columns, dict(zip(columns, cells)), texts)


def _checked(number: int, columns: Iterable[str], cells: Mapping[str, str | Message], texts: Mapping[str, str]) -> Row:
    """The row, with what is wrong with the first of its cells that cannot be taken."""
    reasons = ((column, _reason(cells[column])) for column in columns)
    column, why = next(((column, why) for column, why in reasons if why), ("", None))
    problem = None if why is None else Refusal("row_cell", "Row {number}, column {column}: {reason}.", number=number,
                                               column=repr(column), reason=why)
    return Row(number, texts, problem)


def _reason(cell: str | Message) -> Message | None:
    if isinstance(cell, Message):
        return cell
    if len(cell) > MAX_CELL:
        return Message("cell_long", "it has {count} characters, the maximum is {max}", count=f"{len(cell):,}",
                       max=f"{MAX_CELL:,}")
    if found := NOT_PRINTED.search(cell):
        return Message("cell_control", "it has the control character {code}, which cannot be drawn",
                       code=f"U+{ord(found[0]):04X}")
    return None


# ---------------------------------------------------------------- JSON Lines

def _json_lines(name: str, text: str) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """A column for every name in any object; an object without it has an empty cell there."""
    read_lines = [(number, _object(line)) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    objects = [found for _, found in read_lines if isinstance(found, dict)]
    if read_lines and not objects:
        raise Refusal("table_json", "{file} is no JSON Lines file: each line must be an object such as {example}.",
                      file=name, example='{"title": "Sale"}')
    if len(read_lines) > MAX_ROWS:
        raise _too_many(name)
    names = list(dict.fromkeys(key for found in objects for key in found))
    columns = _columns(name, names) if objects else ()
    return columns, tuple(_json_row(number, columns, names, found) for number, found in read_lines)


def _object(line: str) -> dict | Message:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Message("line_broken", "it is not JSON ({reason})", reason=str(error))
    return found if isinstance(found, dict) else Message("line_no_object", "it is not a JSON object")


def _json_row(number: int, columns: tuple[str, ...], names: list[str], found: dict | Message) -> Row:
    if isinstance(found, Message):
        return Row(number, dict.fromkeys(columns, ""),
                   Refusal("row_line", "Row {number} cannot be read: {reason}.", number=number, reason=found))
    cells = {column: _json_cell(found.get(name)) for column, name in zip(columns, names)}
    return _checked(number, columns, cells, {column: str(cell) for column, cell in cells.items()})


def _json_cell(value: object) -> str | Message:
    if isinstance(value, dict | list):
        return Message("cell_nested", "it is a list or an object; a cell is a text, a number, true or false")
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
