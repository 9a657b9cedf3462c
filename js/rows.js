/**
 * Rows that grow: a row's widgets are hidden as long as the row above, or its own first widget, is not in use. Hidden
 * ones keep their values and their places, so that a workflow is the same with and without this extension.
 */
import { isLinked, onChange, widgetOf } from "./panel.js";

/**
 * @param {LGraphNode} node
 * @param {string} name of the widget
 * @param {{input: string, unused: string}} row the widget that decides, and its value where the row is not in use
 */
export function addRow(node, name, { input, unused }) {
  onChange(node, [input, name], () => {
    const widget = widgetOf(node, name), decides = widgetOf(node, input);
    if (!widget || !decides) return;
    // One that is in use stays, whatever the row above says: what counts in a run must be seen.
    const used = isLinked(node, name) || (typeof widget.value === "string" && widget.value !== unused);
    hide(node, widget, !used && !isLinked(node, input) && decides.value === unused);
  });
}

function hide(node, widget, hidden) {
  if (Boolean(widget.hidden) === hidden) return;
  widget.hidden = hidden; // for the classic renderer
  (widget._state?.options ?? widget.options).hidden = hidden; // for the other one, which watches its own copy
  const socket = node.inputs?.find((one) => one.widget?.name === widget.name);
  if (socket) socket.hidden = hidden;
  if (hidden) node.setSize([node.size[0], node.computeSize()[1]]);
  else node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  node.setDirtyCanvas(true, true);
}
