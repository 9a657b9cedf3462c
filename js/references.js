/**
 * The references of an edit: numbered as the prompt names them, with the picture where it is known. A click writes
 * the name into the prompt, at the cursor.
 */
import { addPanel, element, onChange, setValue, viewAddress, widgetOf } from "./panel.js";
import { word } from "./words.js";

/**
 * @param {LGraphNode} node
 * @param {string} promptName the prompt's widget
 * @param {string} inputName of the growing input; its slots are called inputName.image_1 and so on
 */
export function addReferences(node, promptName, inputName) {
  const list = element("div", { className: "references", role: "group", "aria-label": word("references") });
  addPanel(node, "qwen_image_2_references", list, 74);

  let shown;
  onChange(node, [], () => {
    const pictures = connected(node, inputName).map(pictureOf);
    const state = JSON.stringify(pictures);
    if (state === shown) return;
    shown = state;
    list.replaceChildren(...pictures.map((picture, index) =>
      tile(picture, `<image${index + 1}>`, (name) => insert(node, promptName, name, list))));
    if (!pictures.length) list.textContent = word("no_reference");
  });
}

function tile({ title, url }, name, onpick) {
  const picture = url ? element("img", { src: url, alt: "", loading: "lazy", draggable: false })
    : element("span", { className: "unknown", textContent: "?" });
  return element("button", {
    type: "button", title: word("write_name", { title, name }), onclick: () => onpick(name),
    onmousedown: (event) => event.preventDefault(), // keeps the cursor in the prompt
  }, picture, element("span", { textContent: name }));
}

/** The nodes behind the connected slots, in order: an empty slot between them has no number. */
function connected(node, inputName) {
  return (node.inputs ?? [])
    .map((input, slot) => (input.name.startsWith(`${inputName}.`) && input.link != null ? source(node, slot) : null))
    .filter(Boolean);
}

/** The node that a slot's picture comes from, past reroutes. */
function source(node, slot) {
  let found = node.getInputNode(slot);
  for (let steps = 0; found?.type === "Reroute" && steps < 100; steps++) found = found.getInputNode(0);
  return found;
}

/** What can be shown of a node's picture before anything has run: the file that a loader has chosen. */
function pictureOf(node) {
  const file = node.type.startsWith("LoadImage") ? widgetOf(node, "image")?.value : undefined;
  return { title: node.title ?? node.type, url: typeof file === "string" && file ? address(file) : null };
}

/** A file's address, by ComfyUI's notation: `folder/name.png [output]`. */
function address(file) {
  const [, path, type] = /^(.*?)(?: \[(input|output|temp)\])?$/s.exec(file);
  const cut = path.lastIndexOf("/");
  return viewAddress({
    filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(cut, 0)), type: type ?? "input" });
}

/** Write a name into the prompt, over what is selected there, and leave the cursor behind it. */
function insert(node, promptName, name, near) {
  const box = textBox(node, promptName, near);
  if (!box) return setValue(node, promptName, `${widgetOf(node, promptName)?.value ?? ""}${name}`);
  box.focus();
  box.setRangeText(name, box.selectionStart, box.selectionEnd, "end");
  box.dispatchEvent(new Event("input", { bubbles: true })); // as typed: both renderers listen to it
}

/** The prompt's text box: the widget's own on the classic canvas, a new one in the node's HTML elsewhere. */
function textBox(node, promptName, near) {
  const widget = widgetOf(node, promptName);
  if (widget?.element?.isConnected) return widget.element;
  const boxes = [...(near.closest("[data-node-id]")?.querySelectorAll("textarea") ?? [])];
  return boxes.find((box) => box.labels?.[0]?.textContent.trim() === (widget.label ?? promptName))
    ?? boxes.find((box) => box.value === widget?.value);
}
