"""The first sheet of an XLSX file, cell by cell, as texts."""
import datetime
import io
from collections.abc import Iterator
from typing import Any

from ..messages import Message


def cells_of_sheet(content: bytes) -> Iterator[tuple[int, list[str | Message]]]:
    """Rows from 0, and their cells. Of a formula the value is taken that the program which saved the file has
    calculated. Raises whatever openpyxl does for a damaged file."""
    for number, cells in enumerate(_rows(content, values=False)):
        if any(cell.data_type == "f" for cell in cells):
            yield from _calculated(content, number)
            return
        yield number, [_text(cell.value, cell.data_type) for cell in cells]


def _calculated(content: bytes, begin: int) -> Iterator[tuple[int, list[str | Message]]]:
    """From a row on, with the values of formulas: openpyxl reads either these or the formulas."""
    both = zip(_rows(content, values=False), _rows(content, values=True))
    for number, (cells, values) in enumerate(both):
        if number >= begin:
            yield number, [_value(cell, found) if cell.data_type == "f" else _text(cell.value, cell.data_type)
                           for cell, found in zip(cells, values)]


def _value(cell: Any, found: Any) -> str | Message:
    if found.value is None:
        return Message("cell_uncalculated", "the value of its formula is not in the file; open the file in a "
                       "spreadsheet program and save it there")
    return _text(found.value, found.data_type)


def _rows(content: bytes, values: bool) -> Iterator[tuple]:
    import openpyxl
    book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=values)
    sheet = book.worksheets[0]
    sheet.reset_dimensions()  # what the file says of its size may be wrong
    yield from sheet.rows


def _text(value: object, kind: str) -> str | Message:
    if kind == "e":
        return Message("cell_error", "its formula failed with {error}", error=str(value))
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return format(value, ".15g")  # 7, not 7.0, and what the sheet shows of 0.1
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)
