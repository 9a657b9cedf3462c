/**
 * Why a node did not run, on the node itself and in the page's language, until the workflow is queued again.
 *
 * ComfyUI's page says it in English in a window of its own, and what a node's check refuses once for each input.
 */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { element, removePanel, replacePanel } from "./panel.js";
import { translated } from "./words.js";

const NAME = "qwen_image_2_refusal";

/** How the lines begin that ComfyUI adds to the message of a step that ran out of memory. */
const TIPS = ["This error means", "TIPS:"];

/** Nodes that show one. */
const refusing = new Set();

/** Whose run it is: prompt id -> the id of its graph. Another one may be open when a run fails. */
const graphs = new Map();

/** Called once. */
export function showRefusals() {
  api.addEventListener("execution_error", ({ detail }) => {
    const graph = graphs.get(detail.prompt_id);
    graphs.delete(detail.prompt_id);
    if (isOpen(graph)) show(detail.node_id, [detail.exception_message]);
  });
  for (const end of ["execution_success", "execution_interrupted"]) {
    api.addEventListener(end, ({ detail }) => graphs.delete(detail.prompt_id));
  }
  const queue = api.queuePrompt;
  // There is no event for what is refused before the run. The answer, or the error, is handed on as it is, whatever
  // happens here.
  api.queuePrompt = function (...values) {
    queueMicrotask(forget);
    const graph = values[1]?.workflow?.id;
    const asked = queue.apply(this, values);
    Promise.resolve(asked).then((answer) => {
      if (answer?.prompt_id) graphs.set(answer.prompt_id, graph);
      showAll(answer?.node_errors, graph); // other parts of the workflow may run all the same
    }, (error) => showAll(error?.response?.node_errors, graph));
    return asked;
  };
}

/** Whether a graph is the one on the page; taken for granted where nothing is known of it. */
function isOpen(graph) {
  return !graph || graph === (app.rootGraph ?? app.graph)?.id;
}

function forget() {
  for (const node of refusing) {
    refusing.delete(node);
    removePanel(node, NAME);
  }
}

/**
 * @param {?Object<string, {errors: Array<{details: string, extra_info: {input_name: string}}>}>} errors by node
 * @param {?string} graph
 */
function showAll(errors, graph) {
  if (!isOpen(graph)) return;
  for (const [id, { errors: refused }] of Object.entries(errors ?? {})) {
    // Custom checks are said as "input - message".
    show(id, refused.map(({ details, extra_info: about }) => `${details}`.replace(`${about?.input_name} - `, "")));
  }
}

/**
 * @param {string} id "5", or of a node within subgraphs "2:5"
 * @param {string[]} texts what is not this pack's is left to ComfyUI's page
 */
function show(id, texts) {
  const node = nodeAt(String(id));
  const sentences = new Set(texts.map((text) => translated(withoutTips(text).trim())));
  sentences.delete(null);
  if (!node || !sentences.size) return;
  const items = [...sentences].map((sentence) => element("li", { textContent: sentence }));
  replacePanel(node, NAME, element("ul", { className: "refusal", role: "alert" }, ...items), 40 * items.length);
  refusing.add(node);
}

/** Line by line: a pattern over the whole text would take the square of the number of its empty lines. */
function withoutTips(text) {
  const lines = text.split("\n");
  const from = lines.findIndex((line, index) => index && TIPS.some((tip) => line.trimStart().startsWith(tip)));
  return from < 0 ? text : lines.slice(0, from).join("\n");
}

function nodeAt(path) {
  let node, graph = app.rootGraph ?? app.graph;
  for (const id of path.split(":")) {
    node = graph?.getNodeById(Number(id));
    graph = node?.subgraph;
  }
  return node;
}
