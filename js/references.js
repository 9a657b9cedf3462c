/**
 * The references of an edit: numbered as the prompt names them, with the picture where it is known. A click writes
 * the name into the prompt, at the cursor.
 *
 * After a run the node says which references there were (nodes/edit.py): any source, and each picture of a batch. That
 * stands as long as the same sources are connected; else one picture is assumed for each.
 */
import { listen } from "./changes.js";
import { originOf } from "./origins.js";
import { addPanel, chain, element, onChange, setValue, viewAddress, widgetOf } from "./panel.js";
import { socketName, word } from "./words.js";

const KEY = "qwen_image_2_references";
const PICTURE = "IMAGE";

/**
 * @typedef {{slot: string, title: string, url: ?string}} Reference
 */

/**
 * @param {LGraphNode} node
 * @param {string} promptName the prompt's widget
 * @param {string} inputName of the growing input; its slots are called inputName.image_1 and so on
 */
export function addReferences(node, promptName, inputName) {
  const list = element("div", { className: "references", role: "group", "aria-label": word("references") });
  const widget = addPanel(node, "qwen_image_2_references", list, 74);

  let ran = { state: null, previews: [] }; // what a run has said, and of which sources
  let queued; // the sources when a run was last asked for: they may change while it waits, or it is another graph's
  let shown;

  function update() {
    nameSockets(node, inputName);
    const read = new Set([node]), slots = connected(node, inputName, read);
    listen(update, [...read]);
    const known = JSON.stringify(slots) === ran.state;
    const references = known ? ran.previews.map(({ slot, file }) => ({
      ...slots.find((one) => one.slot === slot), url: viewAddress(file) })) : slots;
    const state = JSON.stringify(references);
    if (state === shown) return;
    shown = state;
    list.replaceChildren(...references.map((reference, index) =>
      tile(reference, `<image${index + 1}>`, (name) => insert(node, promptName, name, list))));
    if (!references.length) list.textContent = word("no_reference");
  }

  onChange(node, [], update);
  // Before it is sent: a busy page may hear of the result earlier than that the server has taken it. A microtask comes
  // after the same call on all other widgets, which may change their values in it.
  widget.beforeQueued = () => queueMicrotask(() => { queued = JSON.stringify(connected(node, inputName)); });
  chain(node, "onExecuted", (output) => {
    const previews = output?.[KEY], slots = connected(node, inputName);
    const state = JSON.stringify(slots);
    const known = new Set(slots.map(({ slot }) => slot));
    if (!Array.isArray(previews) || queued !== state || !previews.every(({ slot }) => known.has(slot))) return;
    ran = { state, previews };
    update();
  });
}

function nameSockets(node, inputName) {
  for (const input of node.inputs ?? []) {
    const [grows, socket] = input.name.split(".");
    if (grows === inputName && socket) input.label = socketName(node.comfyClass, inputName, socket);
  }
}

/** @param {Reference} reference */
function tile({ title, url }, name, onpick) {
  const picture = url ? element("img", { src: url, alt: "", loading: "lazy", draggable: false })
    : element("span", { className: "unknown", textContent: word("after_run") });
  return element("button", {
    type: "button", title: word(url ? "write_name" : "write_assumed", { title, name }), onclick: () => onpick(name),
    "aria-label": name, onmousedown: (event) => event.preventDefault(), // keeps the cursor in the prompt
  }, picture, element("span", { textContent: name }));
}

/**
 * The slots that the server will find a picture in, in order, with what can be shown of it before anything has run.
 *
 * @param {Set<LGraphNode>} [read] gets the nodes that this depends on
 * @returns {Reference[]} also with what tells one source from another
 */
function connected(node, inputName, read = new Set()) {
  return (node.inputs ?? []).flatMap((input, slot) => {
    const from = input.name.startsWith(`${inputName}.`) ? source(node, slot, read) : null;
    return from ? [{ slot: input.name.slice(inputName.length + 1), ...from }] : [];
  });
}

/**
 * Where a slot's picture comes from.
 *
 * @returns {?{from: string, values: Array, title: string, url: ?string}} null: from nowhere
 */
function source(node, slot, read) {
  const origin = originOf(node, slot, PICTURE, read);
  if (!origin) return null;
  const { key, node: from } = origin;
  if (!from) return { from: key, values: [], title: "", url: null }; // of the subgraph around
  return { from: key, values: valuesOf(from), title: from.title ?? from.type, url: fileOf(from) };
}

/** The settings of a source, such as its file or how often it repeats a picture. */
function valuesOf(node) {
  return (node.inputs ?? []).filter((input) => input.widget).map((input) => widgetOf(node, input.widget.name)?.value);
}

/** The address of the file that a loader has chosen. */
function fileOf(node) {
  const file = node.type.startsWith("LoadImage") ? widgetOf(node, "image")?.value : null;
  return typeof file === "string" && file ? address(file) : null;
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
