/**
 * The token meter: how much of the model's attention a prompt takes, and the words it asks to see in the picture.
 *
 * Both are the server's answer (nodes/routes.py): the tokenizer is the model's own.
 */
import { api } from "../../scripts/api.js";
import { addPanel, element, isLinked, onChange, widgetOf } from "./panel.js";
import { sentence, word } from "./words.js";

/** Milliseconds without a key before the server is asked. */
const PAUSE = 300;

/**
 * @typedef {{tokens: number, limit: number, quoted: string[]}} Measure
 */

/**
 * @param {LGraphNode} node
 * @param {string} name of the prompt's widget
 */
export function addTokenMeter(node, name) {
  const bar = element("div", { className: "bar" });
  const gauge = element("div", { className: "gauge", role: "meter", "aria-label": word("tokens"), "aria-valuemin": 0 }, bar);
  const count = element("span", { className: "count" });
  const words = element("ul", { className: "words", title: word("quoted") });
  const content = element("div", { className: "token-meter", title: word("tokens_of", { name }) },
    element("div", { className: "line" }, gauge, count), words);
  addPanel(node, `qwen_image_2_meter_${name}`, content, 44);

  /** @param {Measure} measure */
  function show({ tokens, limit, quoted }) {
    content.classList.toggle("over", tokens > limit);
    bar.style.width = `${Math.min(100, (100 * tokens) / limit)}%`;
    gauge.setAttribute("aria-valuemax", limit);
    gauge.setAttribute("aria-valuenow", Math.min(tokens, limit));
    const figures = { used: tokens.toLocaleString("en"), limit: limit.toLocaleString("en") };
    count.textContent = word(tokens > limit ? "count_over" : "count", figures);
    words.replaceChildren(...quoted.map((text) => element("li", { textContent: text })));
  }

  function say(sentence) {
    content.classList.remove("over");
    bar.style.width = "0";
    count.textContent = sentence;
    words.replaceChildren();
  }

  let asked; // the text whose answer is shown or on its way
  let timer;
  let request;

  async function ask(text) {
    request = new AbortController();
    const { signal } = request;
    try {
      show(await measure(text, signal));
    } catch (error) {
      if (!signal.aborted) say(error.message);
    }
  }

  onChange(node, [name], () => {
    const text = isLinked(node, name) ? null : widgetOf(node, name)?.value;
    if (text === asked) return;
    asked = text;
    clearTimeout(timer);
    request?.abort();
    if (typeof text === "string") timer = setTimeout(ask, PAUSE, text);
    else say(word("linked_text"));
  });
  const widget = widgetOf(node, `qwen_image_2_meter_${name}`);
  const removed = widget.onRemove;
  widget.onRemove = function () {
    clearTimeout(timer);
    request?.abort();
    removed?.call(this);
  };
}

/**
 * @param {string} text
 * @param {AbortSignal} signal
 * @returns {Promise<Measure>}
 */
async function measure(text, signal) {
  const response = await api.fetchApi("/qwen_image_2/prompt", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ text }), signal });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.parts ? sentence(answer.parts) : word("not_counted"));
  return answer;
}
