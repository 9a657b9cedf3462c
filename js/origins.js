/**
 * Where a link comes from, as the page resolves it for the server: past reroutes and bypassed nodes.
 */
const NEVER = 2, BYPASS = 4; // modes of a node, by ComfyUI's page

/**
 * @param {LGraphNode} node
 * @param {number} slot of the input
 * @param {string} type of what the link carries
 * @param {Set<LGraphNode>} [read] gets the nodes that this depends on
 * @returns {?{key: string, node: ?LGraphNode}} null: from nowhere; a key without a node: of the subgraph around
 */
export function originOf(node, slot, type, read = new Set(), steps = 0) {
  const link = slot < 0 ? null : node.getInputLink(slot);
  if (!link || steps > 100) return null; // 100: a circle
  const from = node.graph.getNodeById(link.origin_id);
  const key = `${link.origin_id}:${link.origin_slot}`;
  if (!from) return { key, node: null };
  read.add(from);
  if (from.mode === NEVER) return null;
  const passed = from.mode === BYPASS ? passing(from, link.origin_slot, type)
    : from.isVirtualNode ? link.origin_slot : null;
  return passed === null ? { key, node: from } : originOf(from, passed, type, read, steps + 1);
}

/** The input whose value a bypassed node hands on as this output; -1: none. */
function passing(node, output, type) {
  const inputs = node.inputs ?? [];
  if (inputs[output] && LiteGraph.isValidConnection(inputs[output].type, type)) return output;
  const exact = inputs.findIndex((input) => input.type === type);
  return exact === -1 ? inputs.findIndex((input) => LiteGraph.isValidConnection(input.type, type)) : exact;
}
