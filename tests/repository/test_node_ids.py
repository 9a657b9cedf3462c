"""Which nodes are the pack's is said by lists: how an id begins does not tell, since core has a QwenImage21Cache."""
import ast
import re

from qwen_image_2.tools.generate import translations
from qwen_image_2.tools.pack import ROOT, node_ids


def test_the_list_holds_every_node_that_is_written():
    """A node's class is called as the node; test_contract asks a server for the ids."""
    written = {node.name for path in (ROOT / "nodes").glob("*.py")
               for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
               if isinstance(node, ast.ClassDef) and node.name.startswith("QwenImage2")}
    assert written - {"QwenImage2Extension"} == node_ids()


def test_the_page_has_the_same_list():
    text = (ROOT / "js" / "node_ids.js").read_text(encoding="utf-8")
    assert set(re.findall(r'^  "(\w+)",$', text, re.M)) == node_ids()


def test_core_s_nodes_are_not_translated():
    schema = {"display_name": "Cache", "description": "", "input": {}, "output": [], "output_name": []}
    assert translations.node_definitions({"QwenImage21Cache": schema}) == {}


def test_nobody_asks_how_an_id_begins():
    """In the code of the pack, its page and its tools, of ids that may be another's."""
    asking = re.compile(r"""starts_?[wW]ith\((PREFIX|["'`]QwenImage2["'`])""")
    files = [path for folder in ("nodes", "pages", "js", "tools", "tests") for path in (ROOT / folder).rglob("*")
             if path.suffix in (".py", ".js") and path.name != "test_node_ids.py"]
    assert len(files) > 100 and not [path.name for path in files if asking.search(path.read_text(encoding="utf-8"))]
