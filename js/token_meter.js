/**
 * The token meter: how much of the model's attention a prompt takes, and the words it asks to see in the picture. Of a
 * brief: those of the prompt that the node will write, and what it will shorten or refuse.
 *
 * All of it is the server's answer (nodes/routes.py): tokenizer and wording are the model's own.
 */
import { asker } from "./asking.js";
import { listen } from "./changes.js";
import { addPanel, chain, element, onChange, valuesOf } from "./panel.js";
import { message, word } from "./words.js";

/** Milliseconds without a key before the server is asked. */
const PAUSE = 300;

/** What a node says after a run (nodes/common/prompts.py): how long prompts its model was trained with. */
const TRAINED = "qwen_image_2_trained_tokens";

/**
 * @typedef {{tokens: number, limit: number, quoted: string[], notes: ?Said[], slides: ?Said, refused: ?string,
 *   parts: ?Said}} Measure
 *   refused: why the node would not run, in English, and what it is made of; then nothing else
 */

/**
 * @param {LGraphNode} node
 * @param {string} name of the prompt's widget
 */
export function addTokenMeter(node, name) {
  addMeter(node, name, word("tokens_of", { name }), [name], "prompt", ([text]) => ({ text }));
}

/**
 * @param {LGraphNode} node one that writes a prompt
 * @param {string[]} names of the widgets it is written from
 */
export function addBriefMeter(node, names) {
  addMeter(node, "brief", word("tokens_of_brief"), names, "brief", (values) => ({
    node: node.comfyClass, inputs: Object.fromEntries(names.map((name, index) => [name, values[index]])) }));
}

/**
 * @param {LGraphNode} node
 * @param {string} id of the meter on the node
 * @param {string} title
 * @param {string[]} names of the widgets that are measured
 * @param {string} route
 * @param {function(Array): Object} asking the widgets' values -> the request
 */
function addMeter(node, id, title, names, route, asking) {
  const bar = element("div", { className: "bar" });
  const gauge = element("div", { className: "gauge", role: "meter", "aria-label": word("tokens"), "aria-valuemin": 0 }, bar);
  const count = element("span", { className: "count" });
  const words = element("ul", { className: "words", title: word("quoted") });
  const notes = element("ul", { className: "notes", title: word("shortened") });
  const content = element("div", { className: "token-meter", title },
    element("div", { className: "line" }, gauge, count), words, notes);
  const widget = addPanel(node, `qwen_image_2_meter_${id}`, content, 44);

  let trained; // known once a model has run
  let last = null; // what is shown, where it is a measure

  /** @param {Measure} measure */
  function show(measure) {
    const { tokens, quoted, notes: said = [], slides, parts } = measure;
    if (parts) return say(message(parts));
    last = measure;
    const limit = trained ?? measure.limit;
    content.classList.toggle("over", tokens > limit);
    bar.style.width = `${Math.min(100, (100 * tokens) / limit)}%`;
    gauge.setAttribute("aria-valuemax", limit);
    gauge.setAttribute("aria-valuenow", Math.min(tokens, limit));
    const figures = { used: tokens.toLocaleString("en"), limit: limit.toLocaleString("en") };
    const used = word(tokens > limit ? "count_over" : "count", figures);
    count.textContent = slides ? word("count_longest", { slides: message(slides), used }) : used;
    words.replaceChildren(...quoted.map((text) => element("li", { textContent: text })));
    notes.replaceChildren(...said.map((note) => element("li", { textContent: message(note) })));
  }

  function say(text) {
    last = null;
    content.classList.remove("over");
    bar.style.width = "0";
    gauge.removeAttribute("aria-valuenow");
    count.textContent = text;
    words.replaceChildren();
    notes.replaceChildren();
  }

  const { ask, tell, stop } = asker(route, { pause: PAUSE, silent: word("not_counted"), show, say });

  function update() {
    const read = new Set(), { values, unknown } = valuesOf(node, names, read);
    listen(update, [...read]);
    if (unknown) tell(unknown);
    else ask(JSON.stringify(asking(values)));
  }

  onChange(node, names, update);
  chain(node, "onExecuted", (output) => {
    trained = output?.[TRAINED]?.[0] ?? trained;
    if (last) show(last);
  });
  chain(widget, "onRemove", stop);
}
