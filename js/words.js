/**
 * What the panels say, in the page's language. Words come from locales/<language>/main.json through ComfyUI, and so do
 * the translations of Python's messages (messages.py), whose English is in the code.
 */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const KEY = "qwen_image_2";

/** By the keys of locales/en/main.json; what stands in { } is filled in. */
let words = {};

/** Translations of Python's messages by their keys. */
let messages = {};

/** What recognises a message in the English it became; those with the most fixed text first. */
let patterns = [];

/** Fewer letters of fixed text, as in "{some} and {last}", would be found in what users wrote, too. */
const FIXED_LETTERS = 4;

/** What is longer was not said by this pack, and not worth the search. */
const MAX_LENGTH = 2000;

/** ComfyUI's own translations of node definitions, by class. */
let definitions = {};

/** Called once, before any panel is made: a page in another language is the page opened anew. */
export async function loadWords() {
  const response = await api.fetchApi("/i18n");
  if (!response.ok) return console.warn(`Qwen-Image 2: words were not loaded (HTTP ${response.status})`);
  const languages = await response.json();
  const locale = app.extensionManager.setting.get("Comfy.Locale"), own = languages[locale]?.[KEY];
  words = { ...languages.en?.[KEY]?.words, ...own?.words };
  messages = own?.messages ?? {};
  patterns = Object.entries(languages.en?.[KEY]?.messages ?? {}).map(patternOf)
    .filter(({ fixed }) => fixed.match(/[a-z]/gi)?.length >= FIXED_LETTERS)
    .sort((one, other) => other.fixed.length - one.fixed.length);
  definitions = languages[locale]?.nodeDefs ?? {};
}

/** The name of a socket of an input that grows: the page translates only the first one. */
export function socketName(kind, input, socket) {
  return definitions[kind]?.inputs?.[`${input}_${socket}`]?.name ?? socket;
}

/**
 * @param {string} key of the words
 * @param {Object<string, string|number>} [values] what is filled in
 */
export function word(key, values = {}) {
  return filled(words[key] ?? key, values);
}

/**
 * @typedef {string|number|Said[]|{key: string, template: string, values: Object<string, Said>}} Said
 * @param {Said} said what a message is made of
 * @returns {string} in the page's language
 */
export function message(said) {
  if (Array.isArray(said)) return said.map(message).join(word("comma"));
  if (said?.key === undefined) return String(said);
  const values = Object.entries(said.values).map(([name, value]) => [name, message(value)]);
  return filled(messages[said.key] ?? said.template, Object.fromEntries(values));
}

/**
 * ComfyUI hands on what Python has raised, or a check before the run has said, as plain English: which message it was
 * is found again by what is fixed in its template.
 *
 * @param {string} english
 * @param {boolean} [part] it stands in a hole: words such as "title" and "3 pages" are the pack's only there
 * @returns {?string} in the page's language; null: this pack has said nothing of the kind
 */
export function translated(english, part = false) {
  if (english.length > MAX_LENGTH) return null;
  for (const { key, template, names, between, whole } of patterns) {
    const found = part || whole ? holesOf(between, english) : null;
    if (!found) continue;
    const values = names.map((name, index) => [name, translated(found[index], true) ?? found[index]]);
    return filled(messages[key] ?? template, Object.fromEntries(values));
  }
  return null;
}

function patternOf([key, template]) {
  const pieces = template.split(/\{(\w+)\}/); // fixed, name, fixed, name, ..., fixed
  const between = pieces.filter((_, index) => index % 2 === 0), names = pieces.filter((_, index) => index % 2);
  return { key, template, names, between, fixed: between.join(""), whole: /(\.|: \{error\})$/.test(template) };
}

/**
 * What stands between the fixed pieces of a template, each hole as short as can be. By hand: a regular expression of
 * that form takes minutes to find out that a text, which a stranger's workflow may have chosen, is something else.
 *
 * @returns {?string[]} null: the text did not come from the template
 */
function holesOf([first, ...others], text) {
  if (!text.startsWith(first)) return null;
  const holes = [];
  let at = first.length;
  for (const [index, piece] of others.entries()) {
    const last = index === others.length - 1;
    const next = last ? text.length - piece.length : text.indexOf(piece, at);
    if (next < at || !text.startsWith(piece, next)) return null;
    holes.push(text.slice(at, next));
    at = next + piece.length;
  }
  return at === text.length ? holes : null;
}

function filled(text, values) {
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}
