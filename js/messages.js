/**
 * What a node has said (nodes/notices.py), kept on it until it has run again.
 *
 * ComfyUI's page shows the same messages in a box of its own while the node works, but drops from them what looks
 * like a tag (<image1>), and keeps the box when the next run has nothing to say: this takes its place.
 */
import { chain, element, removePanel, replacePanel } from "./panel.js";
import { message } from "./words.js";

const PARTS = "qwen_image_2_parts";
const SPEAKER = "qwen_image_2_speaker";
const NAME = "qwen_image_2_messages";
const PAGES_OWN = "$$node-text-preview";

/** @param {function} nodeType a node class of the pack */
export function showMessages(nodeType) {
  chain(nodeType.prototype, "onExecuted", function (output) {
    if (!Array.isArray(output?.[PARTS])) return;
    // The parts of an expanded loader speak through the node on the page: each replaces only what it said before.
    this.qwenImage2Said ??= new Map();
    this.qwenImage2Said.set(String(output[SPEAKER]), output[PARTS].map(message));
    // A node that runs once for each slide of a deck says most things once for each.
    show(this, [...new Set([...this.qwenImage2Said.values()].flat())]);
  });
}

/**
 * @param {LGraphNode} node
 * @param {string[]} messages
 */
function show(node, messages) {
  removePanel(node, PAGES_OWN);
  const items = messages.map((text) => element("li", { textContent: text }));
  const list = items.length ? element("ul", { className: "messages", role: "status" }, ...items) : null;
  replacePanel(node, NAME, list, 24 * items.length);
}
