/**
 * The text of Layout's input `boxes` (pages/layout.py: read, edited) with one box changed: what else was written there
 * stays.
 */

/**
 * @param {string} text JSON: a list of boxes, or an object with `boxes`; empty where nothing was changed yet
 * @param {string} name of the box
 * @param {Object} change new values of it
 * @param {Object} whole the layout as it is, for texts in which boxes have no names: core's elements
 * @returns {string} JSON, a box on each line
 */
export function withChange(text, name, change, whole) {
  let layout = text.trim() ? JSON.parse(text) : [];
  if (entriesOf(layout).some((entry) => "bbox" in entry)) layout = whole;
  const entries = entriesOf(layout);
  const known = entries.findLast((entry, index) => (entry.name ?? `box ${index + 1}`) === name);
  if (known) Object.assign(known, change);
  else entries.push({ name, ...change });
  return written(layout);
}

function entriesOf(layout) {
  return Array.isArray(layout) ? layout : layout.boxes;
}

function written(layout) {
  const list = `[\n ${entriesOf(layout).map((entry) => JSON.stringify(entry)).join(",\n ")}\n]`;
  if (Array.isArray(layout)) return list;
  const { boxes, ...rest } = layout;
  return `${JSON.stringify(rest).slice(0, -1)}${Object.keys(rest).length ? ", " : ""}"boxes": ${list}}`;
}
