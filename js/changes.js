/**
 * Which nodes a change of the graph is about.
 *
 * ComfyUI says after each change only that there was one, and hands over the whole graph as it would be saved. That is
 * compared, node by node, with the one before: plain data, a few microseconds a node, where asking every node's widgets
 * again takes a thousand times as long.
 */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

/** What of a saved node the panels read; they need not hear that one was moved, resized or coloured. */
const READ = ["widgets_values", "inputs", "mode", "title"];

/** node -> what is to be called when it has changed. Weak: ComfyUI does not say that a subgraph's nodes are gone. */
const listeners = new WeakMap();

/** listener -> the nodes that it hears of */
const heard = new WeakMap();

/** The graph's id, and its saved nodes as of the last change: "graph:node" -> saved node. */
let before = { id: undefined, nodes: new Map() };

/**
 * Call `listener` when a saved value, a link, the mode or the title of one of these nodes has changed, and of no others
 * any more. A node that was not there before has changed.
 *
 * @param {function(): void} listener
 * @param {LGraphNode[]} nodes
 */
export function listen(listener, nodes) {
  for (const node of heard.get(listener) ?? []) listeners.get(node)?.delete(listener);
  heard.set(listener, nodes);
  for (const node of nodes) {
    if (!listeners.has(node)) listeners.set(node, new Set());
    listeners.get(node).add(listener);
  }
}

/** Called when a workflow is open, or the first change of it would be one of every node: they have read themselves. */
export function rememberGraph() {
  before = remembered(JSON.parse(JSON.stringify((app.rootGraph ?? app.graph).serialize())));
}

api.addEventListener("graphChanged", ({ detail }) => {
  const now = remembered(detail);
  const known = now.id === before.id ? before.nodes : new Map();
  before = now;
  const called = new Set();
  const call = (node) => (node && listeners.get(node))?.forEach((listener) => called.add(listener));
  for (const [key, { graph, saved }] of now.nodes) {
    if (isAlike(known.get(key)?.saved, saved)) continue;
    call(graph?.getNodeById(saved.id));
    if (!known.has(key)) innerNodes(saved).forEach(call);
  }
  for (const [key, { saved }] of known) if (!now.nodes.has(key)) innerNodes(saved).forEach(call);
  for (const listener of called) listener();
});

/** The nodes inside a saved subgraph node: whose values they have depends on how many such nodes there are. */
function innerNodes({ type }) {
  return (app.rootGraph ?? app.graph).subgraphs?.get(type)?.nodes ?? [];
}

/** The nodes of a saved workflow and of its subgraphs, each with the graph on the page that it belongs to. */
function remembered({ id: workflow, nodes, definitions }) {
  const root = app.rootGraph ?? app.graph;
  const graphs = [{ id: "", nodes, graph: root },
    ...(definitions?.subgraphs ?? []).map(({ id, nodes: inner }) => ({ id, nodes: inner, graph: root.subgraphs?.get(id) }))];
  const all = graphs.flatMap(({ id, nodes: inner, graph }) =>
    inner.map((saved) => [`${id}:${saved.id}`, { graph, saved }]));
  return { id: workflow, nodes: new Map(all) };
}

function isAlike(one, other) {
  return one !== undefined && READ.every((name) => isEqual(one[name], other[name]));
}

/** Whether two values of a JSON file are the same. */
function isEqual(one, other) {
  if (one === other) return true;
  if (typeof one !== "object" || typeof other !== "object" || !one || !other) return false;
  for (const name in one) if (!isEqual(one[name], other[name])) return false;
  for (const name in other) if (!(name in one)) return false;
  return true;
}
