/**
 * The page of a Layout node with its boxes above it, which are moved and resized with the mouse and with the keyboard.
 *
 * What was moved stands in the node's own input `boxes`, nowhere else: so it is saved, undone and run like any value.
 */
import { withChange } from "./boxes_text.js";
import { listen } from "./changes.js";
import { moved, pulled, stepped, stretched } from "./grid.js";
import { originOf } from "./origins.js";
import { byName, pageView } from "./page_view.js";
import { addPalette } from "./palette.js";
import { addPanel, asOneStep, chain, element, onChange, setter, setValues, valuesOf, widgetOf } from "./panel.js";
import { word } from "./words.js";

/** What the route takes besides a brief's values. */
const NAMES = ["boxes", "font", "picture", "width", "height"];

const TYPE = "QWEN_IMAGE_2_LAYOUT";
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const FAR = 10; // lines of the grid, with Shift
const CORNERS = ["left top", "right top", "left bottom", "right bottom"];

/** Characters of a box's text that are read out. */
const MAX_TEXT = 60;

let panels = 0;

/**
 * @param {LGraphNode} node
 * @param {string} input the one that a layout is connected to
 * @param {function(string): ?string[]} namesOf the widgets of a class of briefs, null for other nodes
 */
export function addLayoutEditor(node, input, namesOf) {
  const view = pageView(show);
  const status = element("output", { className: "place-line", textContent: word("layout_keys") });
  const help = element("span", { className: "unseen", id: `qwen-image-2-keys-${++panels}`, textContent: word("layout_keys") });
  // An application: a screen reader hands the arrow keys on.
  const frame = element("div", { className: "frame", role: "application", "aria-label": word("boxes_of_page"),
    "aria-describedby": help.id });
  const palette = addPalette((colour) => change({ colour }));
  view.stage.append(frame);
  view.stage.after(status, palette.content, help);
  const widget = addPanel(node, "qwen_image_2_layout", view.content, 460);

  const followed = new WeakSet(); // briefs
  let page = { width: 1, height: 1, boxes: [] };
  const shown = new Map(); // name -> { box, tile }
  let selected = null; // the name of a box
  let drag = null; // what the mouse is about: { from, corner, x, y, place }

  function update() {
    const read = new Set(), { values, unknown } = valuesOf(node, NAMES, read);
    const brief = briefOf(read);
    listen(update, [...read]);
    if (unknown ?? brief.unknown) view.tell(unknown ?? brief.unknown);
    else view.ask({ ...byName(NAMES, values), ...brief.request });
  }

  /** The brief whose layout is connected, as the route takes it. */
  function briefOf(read) {
    const slot = node.inputs?.findIndex((one) => one.name === input) ?? -1;
    const origin = originOf(node, slot, TYPE, read);
    if (!origin) return { request: {} };
    const names = origin.node && namesOf(origin.node.comfyClass);
    if (!names) return { unknown: word("layout_unknown", { title: origin.node?.title ?? "…" }) };
    follow(origin.node, names);
    const { values, unknown } = valuesOf(origin.node, names, read);
    return { unknown, request: { node: origin.node.comfyClass, inputs: byName(names, values) } };
  }

  /** Hear of each key in a brief: ComfyUI says of a text only when somebody has left it that it was changed. */
  function follow(brief, names) {
    if (followed.has(brief)) return;
    followed.add(brief);
    for (const name of names) chain(widgetOf(brief, name) ?? {}, "callback", () => node.graph && update());
  }

  /** @param {?Page} answer */
  function show(answer) {
    if (!answer) return palette.show(undefined, page.boxes); // nothing can be changed
    page = answer;
    const names = new Set(page.boxes.map((box) => box.name));
    for (const [name, { tile }] of shown) {
      if (names.has(name)) continue;
      tile.remove();
      shown.delete(name);
    }
    for (const box of page.boxes) {
      if (!shown.has(box.name)) shown.set(box.name, { tile: tileOf(box.name) });
      shown.get(box.name).box = box;
      if (!drag || selected !== box.name) draw(box.name, box);
    }
    const tiles = page.boxes.map((box) => shown.get(box.name).tile);
    // In reading order; only where that is another one, or the box with the focus would lose it.
    if (tiles.some((tile, index) => tile !== frame.children[index])) frame.append(...tiles);
    if (!shown.has(selected)) selected = null;
    tell();
  }

  function draw(name, { x, y, w, h }) {
    const { box, tile } = shown.get(name);
    Object.assign(tile.style, { left: percent(x), top: percent(y), width: percent(w), height: percent(h) });
    tile.setAttribute("aria-label", labelOf({ ...box, x, y, w, h }));
  }

  /** What the selected box is and where, below the page; it is read out, too. */
  function tell() {
    const box = shown.get(selected)?.box;
    for (const [name, { tile }] of shown) tile.setAttribute("aria-pressed", name === selected);
    status.textContent = box ? labelOf(box) : word("layout_keys");
    palette.show(box, page.boxes);
  }

  /** Change the selected box on the page at once, and in the node's input; the picture follows. */
  function change(values) {
    const { box } = shown.get(selected), owner = setter(node, "boxes");
    if (!owner.node || Object.entries(values).every(([name, value]) => box[name] === value)) return;
    Object.assign(box, values);
    draw(selected, box);
    tell();
    const whole = { width: page.width, height: page.height, boxes: page.boxes.map(({ em, ...rest }) => rest) };
    const text = widgetOf(owner.node, owner.name).value;
    asOneStep(() => setValues(node, { boxes: withChange(text, selected, values, whole) }));
  }

  function tileOf(name) {
    const corners = CORNERS.map((corner) => element("i", { className: `corner ${corner}` }));
    const tile = element("div", { className: "place", role: "button", tabIndex: 0, "aria-describedby": help.id,
      onfocus: () => select(name), onkeydown: press, onpointerdown: grab, onpointermove: pull, onpointerup: drop,
      onpointercancel: letGo }, ...corners);
    return tile;

    function grab(event) {
      if (event.button) return;
      event.stopPropagation(); // the node would come along
      tile.focus({ preventScroll: true });
      select(name); // where the page had no focus, none came
      tile.setPointerCapture(event.pointerId);
      const corner = event.target === tile ? null : event.target.className;
      drag = { from: shown.get(name).box, corner, x: event.clientX, y: event.clientY, place: null };
    }

    function pull(event) {
      if (!drag) return;
      event.stopPropagation();
      const { width, height } = frame.getBoundingClientRect(); // as it is zoomed
      const across = (event.clientX - drag.x) / width, down = (event.clientY - drag.y) / height;
      drag.place = drag.corner ? pulled(drag.from, drag.corner, across, down) : moved(drag.from, across, down);
      draw(name, drag.place);
    }

    function drop() {
      const place = drag?.place;
      drag = null;
      if (place) change(place);
    }

    function letGo() {
      drag = null;
      draw(name, shown.get(name).box);
    }

    function press(event) {
      if (event.key === "Escape" && drag) letGo();
      const arrow = ARROWS[event.key];
      if (!arrow) return;
      event.preventDefault(); // Alt and an arrow would leave the page
      event.stopPropagation();
      const [across, down] = arrow.map((lines) => lines * (event.shiftKey ? FAR : 1));
      const go = event.altKey || event.ctrlKey || event.metaKey ? stretched : stepped;
      change(go(shown.get(name).box, across, down));
    }
  }

  function select(name) {
    selected = name;
    tell();
  }

  onChange(node, NAMES, update);
  chain(widget, "onRemove", view.stop);
}

function percent(share) {
  return `${100 * share}%`;
}

/** A box in words: what it is, what stands in it, and where. */
function labelOf({ role, text, x, y, w, h }) {
  const short = text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}…` : text;
  const [left, top, width, height] = [x, y, w, h].map((share) => Math.round(1000 * share) / 10);
  return word("box_place", { role: word(`role_${role}`), text: short, left, top, width, height });
}
