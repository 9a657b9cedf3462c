/**
 * What all widgets of the pack share: making elements, putting them on a node, and hearing of changes.
 *
 * A panel is a DOM widget, which both of ComfyUI's renderers show. It keeps no state: everything is read from the
 * node's own widgets and links, so that a workflow is the same with and without this extension.
 */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { listen } from "./changes.js";
import { word } from "./words.js";

/** Pixels of a DOM widget that lie above and below its element on the classic canvas. */
const MARGINS = 16;

/** How many there have been, on all nodes. */
let panels = 0;

/**
 * A new element. Text is only ever set as text: prompts and file names may hold anything.
 *
 * @param {string} tag
 * @param {Object<string, *>} [properties] `className`, `textContent`, listeners (`onclick`), `aria-...` attributes
 * @param {...(Node|string)} children
 * @returns {HTMLElement}
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/**
 * Put an element at the end of a node's widgets. The end matters: the values of a workflow file are counted off
 * against the widgets before it.
 *
 * @param {LGraphNode} node
 * @param {string} name unique on the node
 * @param {HTMLElement} content takes the height it needs
 * @param {number} guess its height in pixels before it is first shown
 * @returns {Object} the widget
 */
export function addPanel(node, name, content, guess) {
  const root = element("div", { className: "qwen-image-2" }, content);
  // A type of its own: the Vue renderer tells widgets apart by node id, name and type, and would go on showing the
  // element of a node that had the same id in the workflow before.
  const type = `qwen_image_2_panel_${++panels}`;
  const widget = node.addDOMWidget(name, type, root, { serialize: false, hideInPanel: true });
  widget.serialize = false; // the one above is for the prompt, this one for the workflow file
  let height = guess;
  // A fixed height instead of a share of the node's: the room belongs to the prompt's text box.
  widget.computeLayoutSize = undefined;
  widget.computeSize = (width) => [width ?? 0, height + MARGINS];
  const observer = new ResizeObserver(() => {
    if (!content.offsetHeight || content.offsetHeight === height) return; // 0: hidden, zoomed out
    height = content.offsetHeight;
    node.setDirtyCanvas(true, true);
  });
  observer.observe(content);
  chain(widget, "onRemove", () => observer.disconnect());
  // Keys that mean something here must not also move or delete the node.
  root.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
  });
  return widget;
}

/**
 * Put what a run has said on a node, in place of what an earlier one did.
 *
 * @param {LGraphNode} node
 * @param {string} name unique on the node
 * @param {?HTMLElement} content null: nothing
 * @param {number} guess as above
 */
export function replacePanel(node, name, content, guess) {
  const holder = widgetOf(node, name)?.element.firstChild;
  if (!content) removePanel(node, name);
  else if (holder) holder.replaceChildren(content);
  else addPanel(node, name, element("div", {}, content), guess);
  node.setDirtyCanvas(true, true);
}

export function removePanel(node, name) {
  const widget = widgetOf(node, name);
  if (widget) node.removeWidget(widget);
}

/** Radio buttons belong together by name, on the whole page. */
let groups = 0;

/** @returns {string} a name for radio buttons that no other ones have */
export function newGroup() {
  return `qwen-image-2-${++groups}`;
}

/**
 * A radio button that looks like a tile: the browser brings the arrow keys and what screen readers need.
 *
 * @param {string} group as by newGroup
 * @param {string} value also what stands on it
 * @param {{onpick: function(): void, picture: (Node|string)}} options
 */
export function choice(group, value, { onpick, picture = "" }) {
  const input = element("input", { type: "radio", name: group, value, onchange: onpick });
  const tile = element("label", { className: "tile" }, input, picture, element("span", { textContent: value }));
  tile.value = value;
  return tile;
}

/** Call `more` after the method `name` of `object`, whatever that was before. */
export function chain(object, name, more) {
  const before = object[name];
  object[name] = function (...values) {
    const result = before?.apply(this, values);
    more.apply(this, values);
    return result;
  };
}

/**
 * Call `update` whenever what a panel shows may have changed: a value typed, a workflow opened, an edit undone. It must
 * be cheap when nothing has. What it reads of other nodes, it names with `listen`, itself among them.
 *
 * @param {LGraphNode} node
 * @param {string[]} names of the widgets it reads
 * @param {function(): void} update
 */
export function onChange(node, names, update) {
  for (const name of names) {
    const widget = widgetOf(node, name);
    if (widget) chain(widget, "callback", update);
  }
  chain(node, "onConfigure", update);
  chain(node, "onConnectionsChange", () => queueMicrotask(update)); // the link is not yet there
  listen(update, [node]);
  queueMicrotask(update);
}

/**
 * The address of a picture that is shown small.
 *
 * @param {{filename: string, subfolder: string, type: string}} file type: input, output or temp
 */
export function viewAddress(file) {
  return api.apiURL(`/view?${new URLSearchParams({ ...file, preview: "webp;75" })}`);
}

/** @returns {Object|undefined} the node's widget of that name */
export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/** Whether the value comes through a link, and so is not known before the workflow runs. */
export function isLinked(node, name) {
  return node.inputs?.some((input) => input.name === name && input.link != null) ?? false;
}

/** What a link inside a subgraph that begins at the subgraph's own input gives as its origin. */
const SUBGRAPH_INPUT = -10;

/**
 * Where a widget's value is set: on the node itself or, where the input was promoted, on the subgraph's node outside.
 *
 * @returns {{node: ?LGraphNode, name: string, hosts: number}} node null: on another node, or on several subgraph nodes,
 *   hosts of them, each with a value of its own
 */
export function setter(node, name) {
  const input = node.inputs?.find((one) => one.name === name);
  if (input?.link == null) return { node, name, hosts: 1 };
  const graph = node.graph, link = graph?.getLink(input.link);
  if (Number(link?.origin_id) !== SUBGRAPH_INPUT) return { node: null, name, hosts: 0 };
  const root = graph.rootGraph, graphs = [root, ...root.subgraphs.values()];
  const hosts = graphs.flatMap((one) => one.nodes).filter((one) => one.subgraph === graph);
  if (hosts.length !== 1) return { node: null, name, hosts: hosts.length };
  return setter(hosts[0], graph.inputs[link.origin_slot].name);
}

/**
 * The values of some of a node's widgets, wherever they are set.
 *
 * @param {LGraphNode} node
 * @param {string[]} names
 * @param {Set<LGraphNode>} read gets the nodes that this depends on
 * @returns {{values: Array, unknown: ?string}} unknown: why they are not all known before the workflow runs
 */
export function valuesOf(node, names, read) {
  const setters = names.map((name) => setter(node, name));
  for (const one of [{ node }, ...setters]) if (one.node) read.add(one.node);
  const index = setters.findIndex((one) => !one.node);
  if (index >= 0) return { values: [], unknown: whyUnknown(node, names[index], setters[index].hosts) };
  return { values: setters.map((one) => widgetOf(one.node, one.name)?.value), unknown: null };
}

/** @param {number} hosts subgraph nodes that set the value, each its own */
function whyUnknown(node, input, hosts) {
  const name = widgetOf(node, input)?.label ?? input;
  return hosts ? word("promoted_value", { name, hosts }) : word("linked_value", { name });
}

/** Set a widget's value as if a person had. */
export function setValue(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget || widget.value === value) return;
  widget.value = value;
  widget.callback?.(value);
  node.setDirtyCanvas(true, true);
}

/** Set values of the same node, wherever they are set, but not those that come through a link. */
export function setValues(node, values) {
  for (const [name, value] of Object.entries(values)) {
    const owner = setter(node, name);
    if (owner.node) setValue(owner.node, owner.name, value);
  }
}

/** What `change` does becomes one step of ComfyUI's undo, which by itself hears only of typing and of the mouse. */
export function asOneStep(change) {
  app.canvas.emitBeforeChange();
  try {
    change();
  } finally {
    app.canvas.emitAfterChange();
  }
}
