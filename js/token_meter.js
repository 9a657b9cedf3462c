/**
 * The token meter: how much of the model's attention a prompt takes, and the words it asks to see in the picture. Of a
 * brief: those of the prompt that the node will write, and what it will shorten or refuse.
 *
 * All of it is the server's answer (nodes/routes.py): tokenizer and wording are the model's own.
 */
import { api } from "../../scripts/api.js";
import { listen } from "./changes.js";
import { addPanel, chain, element, onChange, setter, widgetOf } from "./panel.js";
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

  let asked; // the request whose answer is shown or on its way
  let timer;
  let request;

  async function ask(body) {
    request = new AbortController();
    const { signal } = request;
    try {
      show(await measure(route, body, signal));
    } catch (error) {
      if (!signal.aborted) say(error.message);
    }
  }

  function update() {
    const setters = names.map((name) => setter(node, name));
    listen(update, [node, ...setters.flatMap((one) => (one.node && one.node !== node ? [one.node] : []))]);
    const unknown = setters.findIndex((one) => !one.node);
    const body = unknown < 0 ? JSON.stringify(asking(setters.map((one) => widgetOf(one.node, one.name)?.value)))
      : whyUnknown(node, names[unknown], setters[unknown].hosts);
    if (body === asked) return;
    asked = body;
    clearTimeout(timer);
    request?.abort();
    if (unknown < 0) timer = setTimeout(ask, PAUSE, body);
    else say(body);
  }

  onChange(node, names, update);
  chain(node, "onExecuted", (output) => {
    trained = output?.[TRAINED]?.[0] ?? trained;
    if (last) show(last);
  });
  const removed = widget.onRemove;
  widget.onRemove = function () {
    clearTimeout(timer);
    request?.abort();
    removed?.call(this);
  };
}

/** @param {number} hosts subgraph nodes that set the value, each its own */
function whyUnknown(node, input, hosts) {
  const name = widgetOf(node, input)?.label ?? input;
  return hosts ? word("promoted_value", { name, hosts }) : word("linked_value", { name });
}

/**
 * @param {string} route
 * @param {string} body JSON
 * @param {AbortSignal} signal
 * @returns {Promise<Measure>}
 */
async function measure(route, body, signal) {
  const response = await api.fetchApi(`/qwen_image_2/${route}`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.parts ? message(answer.parts) : word("not_counted"));
  return answer;
}
