/**
 * What a node has said (nodes/messages.py), kept on it until it has run again.
 *
 * ComfyUI's page shows the same sentences in a box of its own while the node works, but drops from them what looks
 * like a tag (<image1>), and keeps the box when the next run has nothing to say: this takes its place.
 */
import { addPanel, chain, element, widgetOf } from "./panel.js";

const KEY = "qwen_image_2_messages";
const SPEAKER = "qwen_image_2_speaker";
const NAME = "qwen_image_2_messages";
const PAGES_OWN = "$$node-text-preview";

/** @param {function} nodeType a node class of the pack */
export function showMessages(nodeType) {
  chain(nodeType.prototype, "onExecuted", function (output) {
    if (!Array.isArray(output?.[KEY])) return;
    // The parts of an expanded loader speak through the node on the page: each replaces only what it said before.
    this.qwenImage2Said ??= new Map();
    this.qwenImage2Said.set(String(output[SPEAKER]), output[KEY].map(String));
    show(this, [...this.qwenImage2Said.values()].flat());
  });
}

/**
 * @param {LGraphNode} node
 * @param {string[]} sentences
 */
function show(node, sentences) {
  remove(node, PAGES_OWN);
  const items = sentences.map((sentence) => element("li", { textContent: sentence }));
  const panel = widgetOf(node, NAME);
  if (panel && items.length) {
    // In place: the parts of a loader speak soon after each other, and the page may still be drawing the first.
    panel.element.querySelector(".messages").replaceChildren(...items);
  } else {
    remove(node, NAME);
    if (items.length) {
      addPanel(node, NAME, element("ul", { className: "messages", role: "status" }, ...items), 24 * items.length);
    }
  }
  node.setDirtyCanvas(true, true);
}

function remove(node, name) {
  const widget = widgetOf(node, name);
  if (widget) node.removeWidget(widget);
}
