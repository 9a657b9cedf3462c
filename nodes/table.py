"""A table -> one row after the other, for briefs and prompts with `{{column}}` in their texts."""
from collections.abc import Iterator
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..messages import Message, Refusal, plural
from ..pages import table
from ..pages.outline import SEEDS
from ..pages.table import Row, Table
from .common import categories
from .common.checks import check_before_run
from .common.paths import check_name
from .common.rows import RowType
from .common.schemas import schema
from .frontend import ui_hints
from .notices import notify

EXAMPLE = "built-in example"
EXAMPLE_FILE = Path(__file__).parents[1] / "assets" / "example_table.csv"
# Every picture of a prompt is made before the first is saved, and stays in memory; render takes any number.
MAX_ROWS = 100
NUMBER = "row"  # {{row}}: the row's number, unless the table has a column of that name
SEED = "seed"   # the column with the rows' own seeds
RENDER = "python tools/dev.py render"


class QwenImage2Table(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2Table",
            display_name="Table (Qwen-Image 2)",
            category=categories.BRIEFS,
            description="Reads a table (CSV, TSV, JSON Lines, XLSX). Connected briefs run once per row, with "
                        "{{column}} in their texts replaced by the row's cells.",
            search_aliases=["csv", "excel", "xlsx", "spreadsheet", "batch", "mail merge", "rows", "data merge"],
            inputs=[
                io.Combo.Input("file", [EXAMPLE, *tables()],
                               extra_dict=ui_hints(table={"suffixes": list(table.SUFFIXES), "max": table.MAX_BYTES}),
                               tooltip="A table in ComfyUI's input folder. The first row names the columns. XLSX needs "
                                       "the package openpyxl."),
                io.String.Input("columns", default="",
                                tooltip="Columns, separated by commas, whose cells must not be empty. Other cells may "
                                        "be: their text is empty then."),
                io.String.Input("text", multiline=True, default="",
                                tooltip="A text with {{column}} in it, for the output Text: a prompt without a "
                                        "brief, for example."),
                io.String.Input("name", default="page_{{row}}",
                                tooltip="For the output Name: the file name of each row, for Save Image. {{row}} is "
                                        "the number of the row."),
                io.Int.Input("first", default=1, min=1, max=table.MAX_ROWS,
                             tooltip="Number of the first row. The header is not counted, empty rows are."),
                io.Int.Input("count", default=MAX_ROWS, min=1, max=MAX_ROWS,
                             tooltip="At most so many rows from the first on. For thousands there is "
                                     "tools/dev.py render, see docs/render.md."),
                io.Int.Input("seed", default=0, min=0, max=SEEDS - 1,
                             control_after_generate=io.ControlAfterGenerate.fixed,
                             tooltip="Seed of the first row; each further row uses the next seed, or that of its cell "
                                     "in a column called seed."),
                io.Combo.Input("encoding", [table.AUTO, *table.ENCODINGS], default=table.AUTO,
                               tooltip="Of CSV and TSV. auto: UTF-8, else GB18030 or Windows-1252, by their letters; "
                                       "the node says what it has taken."),
            ],
            outputs=[
                RowType.Output(display_name="row", is_output_list=True, tooltip="One per row, for the briefs' Row."),
                io.String.Output(display_name="text", is_output_list=True, tooltip="One per row, for a prompt."),
                io.String.Output(display_name="name", is_output_list=True, tooltip="One per row, for a file name."),
                io.Int.Output(display_name="seed", is_output_list=True, tooltip="One per row, for Sampler."),
                io.Int.Output(display_name="rows", tooltip="Number of rows."),
            ],
        )

    @check_before_run
    def validate_inputs(cls, file, columns, text, name, first, count, seed, encoding):
        given = file, columns, text, name, first, count, seed, encoding
        if None not in given:  # else something is linked, and not yet known
            made(*given)

    @classmethod
    def fingerprint_inputs(cls, file, **others):
        """ComfyUI keeps a result as long as this stays the same: the file may change under its name. Its size and time
        say so without reading what may be too large."""
        if file is None:  # linked
            return []
        try:
            about = path_of(file).stat()
        except (OSError, Refusal):  # the run itself will say so
            return []
        return [about.st_size, about.st_mtime_ns]

    @classmethod
    def execute(cls, file, columns, text, name, first, count, seed, encoding):
        found, rows, texts, names, seeds = made(file, columns, text, name, first, count, seed, encoding)
        said = Message("table_read", "{file}: {rows} read, {columns}, encoding {encoding}.", file=found.name,
                       encoding=found.encoding, rows=plural("rows", len(rows), "{count} row", "{count} rows"),
                       columns=plural("columns", len(found.columns), "{count} column", "{count} columns"))
        return io.NodeOutput(rows, texts, names, seeds, len(rows), ui=notify(cls, said, *advice(found, first, count)))


def tables() -> list[str]:
    """Names of the tables in ComfyUI's input folder and the folders in it."""
    folder = Path(folder_paths.get_input_directory())
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                  if path.suffix.lower() in table.SUFFIXES and path.is_file())


def path_of(file: str) -> Path:
    """Raises Refusal for a name that leads out of ComfyUI's folders."""
    if file == EXAMPLE:
        return EXAMPLE_FILE
    try:
        return Path(folder_paths.get_annotated_filepath(file))
    except ValueError as error:
        raise Refusal("table_outside", "{file} points outside ComfyUI's input folder. Put the table there.",
                      file=repr(file[:80])) from error


def made(file: str, columns: str, text: str, name: str, first: int, count: int, seed: int, encoding: str
         ) -> tuple[Table, list[dict], list[str], list[str], list[int]]:
    """The table and, row by row, cells, texts, names and seeds. Raises Refusal for the first thing that is wrong."""
    if encoding not in (table.AUTO, *table.ENCODINGS):
        raise Refusal("table_encoding_choice", "Unknown encoding {encoding}; choose {known}.", encoding=repr(encoding),
                      known=", ".join((table.AUTO, *table.ENCODINGS)))
    found = table.read(path_of(file), encoding)
    asked_for = [column.strip() for column in columns.split(",") if column.strip()]
    table.require_columns(asked_for, found.columns)
    chosen = [row for row in found.rows if row.number >= first][:count]
    if not chosen:
        raise Refusal("table_first", "{file} has no row {first} or later; its last row is {last}.", file=found.name,
                      first=first, last=found.rows[-1].number)
    cells = [checked(row, asked_for) for row in chosen]
    texts, names = ([table.filled(template, each) for each in cells] for template in (text, name))
    check_names(names, chosen)
    return found, cells, texts, names, list(seeds(chosen, seed))


def checked(row: Row, asked_for: list[str]) -> dict[str, str]:
    """The row's cells and its number. Raises Refusal for a row of which no page can be made."""
    if row.problem:
        raise row.problem
    if empty := [column for column in asked_for if not row.cells[column].strip()]:
        raise Refusal("row_empty", "Row {number} is empty in {columns}, which must be filled in.", number=row.number,
                      columns=[repr(column) for column in empty])
    return {NUMBER: str(row.number), **row.cells}


def check_names(names: list[str], rows: list[Row]) -> None:
    """Raises Refusal for a name that is no file name, and for two rows with the same."""
    first: dict[str, int] = {}
    for name, row in zip(names, rows):
        check_name(name)
        before = first.setdefault(name.casefold(), row.number)
        if before != row.number:
            raise Refusal("row_names", "Rows {one} and {other} have the same file name {name}. Put a column into Name "
                          "that differs in each, or {row}.", one=before, other=row.number, name=repr(name),
                          row="{{row}}")


def seeds(rows: list[Row], seed: int) -> Iterator[int]:
    """Each row's own, or the first one's and those after it. Raises Refusal for a cell that is no seed."""
    for index, row in enumerate(rows):
        own = row.cells.get(SEED, "").strip()
        if not own:
            yield (seed + index) % SEEDS
        elif own.isdecimal() and len(own) <= 20 and int(own) < SEEDS:
            yield int(own)
        else:
            raise Refusal("row_seed", "Row {number}: {cell} is not a seed; it must be a whole number from 0 to {max}.",
                          number=row.number, cell=repr(own), max=str(SEEDS - 1))


def advice(found: Table, first: int, count: int) -> Iterator[Message]:
    """What may be meant otherwise."""
    later = [row for row in found.rows if row.number >= first][count:]
    if later:
        yield Message("rows_left", "{count} more rows from row {number} on are left out; {command} takes them all.",
                      count=len(later), number=later[0].number, command=RENDER)
    if pairs := table.same_rows(found):
        yield Message("rows_same", "{count} rows say the same as an earlier one, such as rows {one} and {other}.",
                      count=len(pairs), one=pairs[0][0], other=pairs[0][1])
