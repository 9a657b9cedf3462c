/**
 * The colours that a box's letters can have, as swatches: those that the page has already, some that can be read on
 * paper, and any other one.
 */
import { element } from "./panel.js";
import { word } from "./words.js";

const USUAL = ["#000000", "#6b7280", "#b3261e", "#c2410c", "#a16207", "#15803d", "#1d4ed8", "#6d28d9"];

/** Swatches of the page's own colours. */
const MAX_OWN = 8;

/** What a colour input shows where a box has no colour of that form. */
const NONE = "#000000";

/** @param {function(string): void} onpick */
export function addPalette(onpick) {
  const list = element("div", { className: "swatches" });
  const other = element("input", { type: "color", title: word("other_colour"), "aria-label": word("other_colour"),
    onchange: () => onpick(other.value) });
  const content = element("fieldset", { className: "palette", "aria-label": word("colour_of_box"), disabled: true }, list, other);
  let listed;

  return {
    content,

    /**
     * @param {Box|undefined} box the selected one
     * @param {Box[]} boxes all of the page
     */
    show(box, boxes) {
      content.disabled = !box;
      const own = boxes.map(({ colour }) => colour).filter(Boolean);
      const colours = [...new Set([...new Set(own)].slice(0, MAX_OWN).concat(USUAL))];
      if (JSON.stringify(colours) !== listed) {
        listed = JSON.stringify(colours);
        list.replaceChildren(...colours.map((colour) => swatch(colour, onpick)));
      }
      const current = box && (box.colour || NONE);
      for (const button of list.children) button.setAttribute("aria-pressed", button.title === current);
      other.value = /^#[0-9a-f]{6}$/i.test(current) ? current : NONE;
    },
  };
}

/** The colour is a brief's or a person's word; one that the browser does not know shows by its last word, or stays grey. */
function swatch(colour, onpick) {
  const button = element("button", { type: "button", className: "swatch", title: colour, "aria-label": colour,
    onclick: () => onpick(colour) });
  button.style.background = colour;
  if (!button.style.background) button.style.background = colour.split(" ").at(-1);
  return button;
}
