/**
 * The size picker: every ratio drawn to scale, the size classes, and what the choice means in pixels and tokens.
 *
 * The choice is the node's own combo widgets; the table comes with the node's definition (nodes/frontend.py).
 */
import { addPanel, choice, element, isLinked, newGroup, onChange, setValue, widgetOf } from "./panel.js";
import { word } from "./words.js";

/** Side in pixels of the square whose area all drawn ratios have. */
const DRAWN = 22;

/** Characters that are shown of a value that is no choice. */
const MAX_LENGTH = 40;

/**
 * @typedef {{width: number, height: number, native: boolean}} Size
 * @typedef {{custom: string, token_side: number, table: Object<string, Object<string, Size>>}} SizeTable
 */

/**
 * @param {LGraphNode} node
 * @param {string} ratioName the combo with the ratios
 * @param {SizeTable} sizes
 */
export function addSizePicker(node, ratioName, sizes) {
  const [ratioGroup, sizeGroup] = [newGroup(), newGroup()];
  const classes = Object.keys(Object.values(sizes.table)[0]);
  const ratios = [...Object.keys(sizes.table), sizes.custom].map((ratio) => choice(ratioGroup, ratio, {
    onpick: () => setValue(node, ratioName, ratio), picture: element("span", { className: "shape" }) }));
  const steps = classes.map((size) => choice(sizeGroup, size, { onpick: () => setValue(node, "size", size) }));
  const summary = element("output", { className: "summary" });
  const content = element("div", { className: "size-picker" },
    element("div", { className: "ratios", role: "radiogroup", "aria-label": word("ratios") }, ...ratios),
    element("div", { className: "classes", role: "radiogroup", "aria-label": word("classes") }, ...steps),
    summary);
  addPanel(node, "qwen_image_2_size_picker", content, 116);

  const names = [ratioName, "size", "width", "height"];
  let shown;

  onChange(node, names, () => {
    const values = names.map((name) => widgetOf(node, name)?.value), linked = names.map((name) => isLinked(node, name));
    const state = JSON.stringify([values, linked]);
    if (state === shown) return;
    shown = state;
    const [ratio, size, width, height] = values;
    const custom = ratio === sizes.custom;
    const native = Object.values(sizes.table).flatMap(Object.values).filter((entry) => entry.native);
    const own = { width, height, native: native.some((it) => it.width === width && it.height === height) };
    const chosen = custom ? own : Object.hasOwn(sizes.table, ratio) ? sizes.table[ratio][size] : undefined;
    for (const tile of ratios) {
      const entry = tile.value === sizes.custom ? own : sizes.table[tile.value][size];
      show(tile, tile.value === ratio, isLinked(node, ratioName));
      tile.classList.toggle("native", Boolean(entry?.native));
      if (entry) draw(tile.querySelector(".shape"), entry);
    }
    for (const tile of steps) {
      show(tile, tile.value === size && !custom, custom || isLinked(node, "size"));
      tile.classList.toggle("native", Boolean(sizes.table[ratio]?.[tile.value]?.native));
    }
    const unknown = [ratioName, ...(custom ? ["width", "height"] : ["size"])].some((name) => isLinked(node, name));
    const choices = { [ratioName]: ratios, size: steps };
    const wrong = custom || chosen ? null : Object.hasOwn(sizes.table, ratio) ? "size" : ratioName;
    summary.classList.toggle("wrong", !unknown && wrong !== null);
    if (unknown) summary.textContent = word("linked_size");
    else if (wrong) summary.textContent = noChoice(widgetOf(node, wrong), choices[wrong].map((tile) => tile.value));
    else summary.textContent = describe(chosen, sizes.token_side);
  });
}

/** Of a value that an old workflow or a program has brought: the server will refuse it. */
function noChoice({ label, name, value }, choices) {
  return word("no_choice", { name: label ?? name, value: `${value}`.slice(0, MAX_LENGTH), choices: choices.join(word("comma")) });
}

function show(tile, checked, disabled) {
  Object.assign(tile.querySelector("input"), { checked, disabled });
}

/** The shape of a size; its title says the pixels. */
function draw(shape, { width, height }) {
  const scale = DRAWN / Math.sqrt(width * height);
  shape.style.width = `${Math.min(44, Math.max(4, width * scale))}px`;
  shape.style.height = `${Math.min(36, Math.max(4, height * scale))}px`;
  shape.parentElement.title = `${width} × ${height}`;
}

/** @param {Size} size */
function describe({ width, height, native }, side) {
  const tokens = (Math.floor(width / side) * Math.floor(height / side)).toLocaleString("en");
  return word(native ? "native_size" : "size", { width, height, tokens });
}
