/**
 * A table from the person's computer: a button, or a file dropped on the node, puts it into ComfyUI's input folder and
 * chooses it. ComfyUI's own upload knows pictures, sounds and videos only; its route takes any file.
 */
import { api } from "../../scripts/api.js";
import { addPanel, element, setValue, widgetOf } from "./panel.js";
import { word } from "./words.js";

/**
 * @param {LGraphNode} node
 * @param {string} name of the combo with the files
 * @param {{suffixes: string[], max: number}} taken endings of names, and bytes
 */
export function addTableUpload(node, name, { suffixes, max }) {
  const said = element("output", { className: "summary" });
  const input = element("input", { type: "file", accept: suffixes.join(","), hidden: true,
    onchange: () => input.files[0] && take(input.files[0]) });
  const button = element("button", { type: "button", textContent: word("table_upload"), onclick: () => input.click() });
  addPanel(node, "qwen_image_2_table", element("div", { className: "table-file" }, button, input, said), 34);

  const isTable = (file) => suffixes.some((suffix) => file.name.toLowerCase().endsWith(suffix));

  /** @returns {Promise<boolean>} whether the file was taken, as ComfyUI asks of a drop */
  async function take(file) {
    if (!isTable(file)) return refuse(word("table_suffix", { file: file.name, suffixes: suffixes.join(", ") }));
    if (file.size > max) return refuse(word("table_size", { file: file.name, max: Math.floor(max / 1e6) }));
    const body = new FormData();
    body.append("image", file);
    const response = await api.fetchApi("/upload/image", { method: "POST", body });
    if (!response.ok) return refuse(word("table_not_uploaded", { file: file.name, status: response.status }));
    const { name: saved } = await response.json();
    const { options } = widgetOf(node, name);
    if (!options.values.includes(saved)) options.values = [...options.values, saved];
    setValue(node, name, saved);
    said.textContent = "";
    return true;
  }

  function refuse(sentence) {
    said.textContent = sentence;
    return false;
  }

  node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
  node.onDragDrop = async (event) => {
    const [file] = event.dataTransfer?.files ?? [];
    return Boolean(file) && take(file);
  };
}
