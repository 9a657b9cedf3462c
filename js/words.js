/**
 * What the panels say, in the page's language. Words come from locales/<language>/main.json through ComfyUI, and so do
 * the translations of Python's sentences (model/sentences.py), whose English is in the code.
 */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const KEY = "qwen_image_2";

/** By the keys of locales/en/main.json; what stands in { } is filled in. */
let words = {};

/** By the English template. */
let sentences = {};

/** ComfyUI's own translations of node definitions, by class. */
let definitions = {};

/** Called once, before any panel is made: a page in another language is the page opened anew. */
export async function loadWords() {
  const response = await api.fetchApi("/i18n");
  if (!response.ok) return console.warn(`Qwen-Image 2: words were not loaded (HTTP ${response.status})`);
  const languages = await response.json();
  const locale = app.extensionManager.setting.get("Comfy.Locale"), own = languages[locale]?.[KEY];
  words = { ...languages.en?.[KEY]?.words, ...own?.words };
  sentences = own?.sentences ?? {};
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
 * @typedef {string|number|Said[]|{template: string, values: Object<string, Said>}} Said
 * @param {Said} said what a sentence is made of
 * @returns {string}
 */
export function sentence(said) {
  if (Array.isArray(said)) return said.map(sentence).join(word("comma"));
  if (said?.template === undefined) return String(said);
  const values = Object.entries(said.values).map(([name, value]) => [name, sentence(value)]);
  return filled(sentences[said.template] ?? said.template, Object.fromEntries(values));
}

function filled(text, values) {
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}
