"""Rows of a table between nodes: their type, and how their cells get into texts."""
from collections.abc import Mapping

from comfy_api.latest import io

from ...pages import table

RowType = io.Custom("QWEN_IMAGE_2_ROW")  # column -> text


def row_input() -> io.Input:
    return RowType.Input("row", optional=True,
                         tooltip="From Table: {{column}} in any text of this node is that column's text. The node runs "
                                 "once for each row.")


def filled_in(node: type[io.ComfyNode], inputs: dict, row: Mapping[str, str] | None) -> dict:
    """The inputs with the row's cells in their texts. Raises Refusal for a column that the table does not have.
    Without a row braces are what they are."""
    if row is None:
        return inputs
    texts = {each.id for each in node.define_schema().inputs if isinstance(each, io.String.Input)}
    return {name: table.filled(value, row) if name in texts else value for name, value in inputs.items()}
