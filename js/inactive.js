/**
 * Widgets whose value counts only with one choice of another widget, such as width and height with the ratio custom:
 * greyed out with every other choice. They can still be linked, and keep their values.
 */
import { isLinked, onChange, widgetOf } from "./panel.js";

/**
 * @param {LGraphNode} node
 * @param {string} name of the widget
 * @param {{input: string, value: string}} only the other one, and the choice that counts
 */
export function addOnlyWith(node, name, { input, value }) {
  onChange(node, [input], () => {
    const widget = widgetOf(node, name), disabled = !isLinked(node, input) && widgetOf(node, input)?.value !== value;
    if (!widget || Boolean(widget.disabled) === disabled) return;
    widget.disabled = disabled;
    node.setDirtyCanvas(true, true);
  });
}
