"""A table from the person's computer, in both renderers."""
import pytest

from .conftest import expect

TABLE = "QwenImage2Table"


@pytest.fixture
def panel(page):
    page.open("poster_from_table")
    page.show(TABLE)
    return page.panel("table-file")


def test_a_chosen_file_is_uploaded_and_taken(page, panel, tmp_path):
    file = tmp_path / "flyers.csv"
    file.write_text("title\nSALE\n")
    panel.locator("input").set_input_files(file)
    page.page.wait_for_function("kind => app.graph.nodes.find(node => node.type === kind).widgets"
                                ".find(it => it.name === 'file').value === 'flyers.csv'", arg=TABLE)
    expect(panel.locator(".summary")).to_have_text("")


def test_a_dropped_file_is_uploaded_and_taken(page, panel):
    taken = page.page.evaluate("""async kind => {
        const node = app.graph.nodes.find(node => node.type === kind), data = new DataTransfer();
        data.items.add(new File(["title\\nTEA\\n"], "dropped.tsv"));
        const event = {dataTransfer: data};
        const file = node.widgets.find(it => it.name === "file");
        return [node.onDragOver(event), await node.onDragDrop(event), file.value];
    }""", TABLE)
    assert taken == [True, True, "dropped.tsv"]


def test_what_is_no_table_stays_where_it_is(page, panel, tmp_path):
    before = page.value(TABLE, "file")
    file = tmp_path / "notes.txt"
    file.write_text("title")
    panel.locator("input").set_input_files(file)
    expect(panel.locator(".summary")).to_contain_text("notes.txt is no table: choose one of .csv, .tsv")
    assert page.value(TABLE, "file") == before
