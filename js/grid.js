/**
 * Places of boxes on a page, in shares of it, and how they move: from line to line of a grid, never over the edge.
 */

/** Of the grid, across and down. */
const LINES = 64;

/** Of the way to the next line: so near a line a place is on it, which rounding may have put beside it. */
const NEAR = 0.01;

/** Digits of a share, as in a layout's JSON. */
const DIGITS = 1e5;

/** @typedef {{x: number, y: number, w: number, h: number}} Place */

/**
 * @param {Place} place
 * @param {number} across lines of the grid, to the right
 * @param {number} down
 * @returns {Place} a place between two lines goes to the next one
 */
export function stepped({ x, y, w, h }, across, down) {
  return inside({ x: stepFrom(x, across), y: stepFrom(y, down), w, h });
}

/** The same of the right and the lower edge alone. */
export function stretched({ x, y, w, h }, across, down) {
  return withEdges(x, y, stepFrom(x + w, across), stepFrom(y + h, down));
}

/**
 * Moved by the mouse, and put on the nearest lines.
 *
 * @param {number} across shares of the page
 * @param {number} down
 */
export function moved({ x, y, w, h }, across, down) {
  return inside({ x: across ? nearest(x + across) : x, y: down ? nearest(y + down) : y, w, h });
}

/** One corner moved by the mouse. corner: "left top" and so on. */
export function pulled({ x, y, w, h }, corner, across, down) {
  const [left, right] = corner.includes("left") ? [nearest(x + across), x + w] : [x, nearest(x + w + across)];
  const [top, bottom] = corner.includes("top") ? [nearest(y + down), y + h] : [y, nearest(y + h + down)];
  return withEdges(Math.min(left, right - 1 / LINES), Math.min(top, bottom - 1 / LINES), right, bottom);
}

function nearest(share) {
  return Math.round(share * LINES) / LINES;
}

function stepFrom(share, lines) {
  if (!lines) return share;
  const from = lines > 0 ? Math.floor(share * LINES + NEAR) : Math.ceil(share * LINES - NEAR);
  return (from + lines) / LINES;
}

function inside({ x, y, w, h }) {
  return rounded({ x: between(0, x, 1 - w), y: between(0, y, 1 - h), w, h });
}

function withEdges(left, top, right, bottom) {
  const x = between(0, left, 1), y = between(0, top, 1);
  return rounded({ x, y, w: between(1 / LINES, right - x, 1 - x), h: between(1 / LINES, bottom - y, 1 - y) });
}

function between(least, value, most) {
  return Math.max(least, Math.min(value, most));
}

function rounded(place) {
  return Object.fromEntries(Object.entries(place).map(([name, share]) => [name, Math.round(share * DIGITS) / DIGITS]));
}
