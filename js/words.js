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

/** Called once, before any panel is made: a page in another language is the page opened anew. */
export async function loadWords() {
  const response = await api.fetchApi("/i18n");
  if (!response.ok) return console.warn(`Qwen-Image 2: words were not loaded (HTTP ${response.status})`);
  const languages = await response.json();
  const own = languages[app.extensionManager.setting.get("Comfy.Locale")]?.[KEY];
  words = { ...languages.en?.[KEY]?.words, ...own?.words };
  sentences = own?.sentences ?? {};
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
