/**
 * A page as it is typeset, small, while somebody types: the server's picture of it (nodes/routes.py, preview_layout),
 * and why there is none in one sentence. Nothing waits for it.
 */
import { asker } from "./asking.js";
import { listen } from "./changes.js";
import { addPanel, chain, element, onChange, valuesOf } from "./panel.js";
import { message, word } from "./words.js";

/** Milliseconds without a key before the server is asked. */
const PAUSE = 250;

/**
 * @typedef {{name: string, role: string, text: string, x: number, y: number, w: number, h: number, colour: ?string}} Box
 * @typedef {{width: number, height: number, image: string, boxes: Box[], notes: Said[]}} Page
 */

/**
 * @param {function(?Page): void} [onpage] called with each new page; null: with what is said instead of one
 * @returns {{content: HTMLElement, stage: HTMLElement, ask: function(Object): void, tell: function(string): void,
 *   stop: function(): void}} tell: what is said instead of a page
 */
export function pageView(onpage) {
  const picture = element("img", { alt: "", draggable: false });
  const stage = element("div", { className: "stage", hidden: true }, picture);
  const said = element("p", { className: "said", role: "status" });
  const notes = element("ul", { className: "notes" });
  const content = element("div", { className: "page-view" }, stage, said, notes);

  /** @param {Page|{parts: Said}} answer */
  function show(answer) {
    if (answer.parts) return say(message(answer.parts));
    const { width, height, image, boxes, notes: noted } = answer;
    picture.src = image;
    picture.alt = word("page_of", { count: boxes.length, width, height });
    stage.style.aspectRatio = `${width} / ${height}`;
    stage.style.setProperty("--ratio", width / height);
    stage.hidden = stage.inert = false;
    content.classList.remove("old");
    said.textContent = "";
    notes.replaceChildren(...noted.map((note) => element("li", { textContent: message(note) })));
    onpage?.(answer);
  }

  /** The last page stays in sight, but nothing on it can be moved: it is not what the node has now. */
  function say(text) {
    stage.inert = true;
    content.classList.add("old");
    said.textContent = text;
    notes.replaceChildren();
    onpage?.(null);
  }

  const { ask, tell, stop } = asker("layout", { pause: PAUSE, silent: word("no_page"), show, say });
  return { content, stage, ask: (request) => ask(JSON.stringify(request)), tell, stop };
}

/**
 * The page that a brief's rules arrange. To be looked at only: boxes are moved on Layout.
 *
 * @param {LGraphNode} node a brief
 * @param {string[]} names of its widgets
 */
export function addPagePreview(node, names) {
  const { content, ask, tell, stop } = pageView();
  const widget = addPanel(node, "qwen_image_2_page", content, 250);

  function update() {
    const read = new Set(), { values, unknown } = valuesOf(node, names, read);
    listen(update, [...read]);
    if (unknown) tell(unknown);
    else ask({ node: node.comfyClass, inputs: byName(names, values) });
  }

  onChange(node, names, update);
  chain(widget, "onRemove", stop);
}

export function byName(names, values) {
  return Object.fromEntries(names.map((name, index) => [name, values[index]]));
}
