/**
 * What a text check has found (nodes/text_check.py): the picture with a box around everything that was read, and
 * beside each expected line what the picture says instead.
 *
 * Verdicts, boxes and colours are Python's. Every box also says its verdict, and the table says it in words.
 */
import { chain, choice, element, newGroup, replacePanel, viewAddress } from "./panel.js";
import { word } from "./words.js";

const KEY = "qwen_image_2_text_check";
const NAME = "qwen_image_2_text_check";
const GUESS = 360;

/**
 * @typedef {{number: ?number, status: string, colour: string, expected: string, found: string,
 *            boxes: number[][]}} Row boxes: left, top, right, bottom in pixels of the picture
 * @typedef {{file: Object<string, string>, width: number, height: number, passed: boolean, rows: Row[]}} Check
 */

/** @param {function} nodeType a node class of the pack */
export function showChecks(nodeType) {
  chain(nodeType.prototype, "onExecuted", function (output) {
    if (Array.isArray(output?.[KEY])) replacePanel(this, NAME, browser(output[KEY]), GUESS);
  });
}

/**
 * One picture of the batch at a time, first the first that failed.
 *
 * @param {Check[]} checks
 */
function browser(checks) {
  const shown = element("div");
  const group = newGroup();
  const tiles = checks.map((check, index) => choice(group, `${check.passed ? "✓" : "✗"} ${index + 1}`, {
    onpick: () => shown.replaceChildren(...view(check)) }));
  const first = Math.max(0, checks.findIndex((check) => !check.passed));
  tiles[first].querySelector("input").checked = true;
  shown.replaceChildren(...view(checks[first]));
  const pictures = element("div", { className: "pictures", role: "radiogroup", "aria-label": word("pictures") }, ...tiles);
  return element("div", { className: "text-check" }, ...(checks.length > 1 ? [pictures] : []), shown);
}

/** @param {Check} check */
function view({ file, width, height, rows }) {
  const stage = element("div", { className: "stage" },
    element("img", { src: viewAddress(file), alt: word("picture_read"), draggable: false }));
  stage.style.aspectRatio = `${width} / ${height}`;
  stage.style.setProperty("--ratio", width / height);
  const lines = rows.map((row) => {
    const boxes = row.boxes.map((box) => frame(row, box, width, height));
    stage.append(...boxes);
    return line(row, (lit) => boxes.forEach((box) => box.classList.toggle("lit", lit)));
  });
  const head = element("tr", {}, ...["", word("verdict"), word("expected"), word("found")].map((textContent) =>
    element("th", { scope: "col", textContent })));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines));
  return [stage, element("div", { className: "lines" }, table)];
}

/** A box over the picture, in shares of it: it stays in place at any size and zoom. */
function frame({ number, status, colour }, [left, top, right, bottom], width, height) {
  const label = [number, word(`verdict_${status}`)].filter(Boolean).join(" ");
  const box = element("div", { className: "box" }, element("span", { textContent: label }));
  box.style.setProperty("--colour", colour);
  Object.assign(box.style, {
    left: `${(100 * left) / width}%`, top: `${(100 * top) / height}%`,
    width: `${(100 * (right - left)) / width}%`, height: `${(100 * (bottom - top)) / height}%`,
  });
  return box;
}

/** @param {function(boolean): void} light the boxes of this row */
function line({ number, status, colour, expected, found }, light) {
  const cells = [number ?? "", word(`verdict_${status}`), expected, found].map((text) => element("td", { textContent: text }));
  const row = element("tr", { className: "verdict", tabIndex: 0,
    onpointerenter: () => light(true), onpointerleave: () => light(false),
    onfocus: () => light(true), onblur: () => light(false) }, ...cells);
  row.style.setProperty("--colour", colour);
  return row;
}
