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

/** Nodes that show one. */
const refusing = new Set();

/** Called once. */
export function showRefusals() {
  api.addEventListener("execution_error", ({ detail }) => show(detail.node_id, [detail.exception_message]));
  const queue = api.queuePrompt;
  // There is no event for what is refused before the run. The answer, or the error, is handed on as it is.
  api.queuePrompt = async function (...values) {
    forget();
    try {
      const answer = await queue.apply(this, values);
      showAll(answer?.node_errors); // other parts of the workflow may run all the same
      return answer;
    } catch (error) {
      showAll(error.response?.node_errors);
      throw error;
    }
  };
}

function forget() {
  for (const node of refusing) removePanel(node, NAME);
  refusing.clear();
}

/** @param {?Object<string, {errors: Array<{details: string, extra_info: {input_name: string}}>}>} errors by node */
function showAll(errors) {
  for (const [id, { errors: refused }] of Object.entries(errors ?? {})) {
    // Custom checks are said as "input - sentence".
    show(id, refused.map(({ details, extra_info: about }) => details.replace(`${about?.input_name} - `, "")));
  }
}

/**
 * @param {string} id "5", or of a node within subgraphs "2:5"
 * @param {string[]} texts what is not this pack's is left to ComfyUI's page
 */
function show(id, texts) {
  const node = nodeAt(String(id));
  // ComfyUI adds lines of its own to what is raised.
  const sentences = new Set(texts.map((text) => translated(text.trim()) ?? translated(text.split("\n")[0])));
  sentences.delete(null);
  if (!node || !sentences.size) return;
  const items = [...sentences].map((sentence) => element("li", { textContent: sentence }));
  replacePanel(node, NAME, element("ul", { className: "refusal", role: "alert" }, ...items), 40 * items.length);
  refusing.add(node);
}

function nodeAt(path) {
  let node, graph = app.rootGraph ?? app.graph;
  for (const id of path.split(":")) {
    node = graph?.getNodeById(Number(id));
    graph = node?.subgraph;
  }
  return node;
}
