/**
 * The words of the panels. English is here; other languages come with ComfyUI's translations of packs, from
 * locales/<language>/main.json, under the same keys.
 */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const KEY = "qwen_image_2";

/** What stands in { } is filled in. */
const ENGLISH = {
  ratios: "Aspect ratio",
  classes: "Size class",
  linked_size: "Set by another node",
  size: "{width} × {height} px · {tokens} tokens",
  native_size: "{width} × {height} px · {tokens} tokens · ◆ native 2K",
  tokens: "Tokens",
  tokens_of: "Tokens of {name}",
  quoted: "Words to be drawn: those in double quotes",
  count: "{used} of {limit} tokens",
  count_over: "{used} of {limit} tokens: the end may be ignored",
  linked_text: "Counted when it runs: the text comes from another node",
  not_counted: "Not counted: the server did not answer",
  references: "References",
  no_reference: "Connect the picture to edit as image_1",
  write_name: "{title}: write {name} at the cursor",
  pictures: "Picture",
  picture_read: "The picture that was read",
  verdict: "Verdict",
  expected: "Expected",
  found: "In the picture",
  verdict_right: "right",
  verdict_wrong: "wrong",
  verdict_missing: "missing",
  verdict_extra: "extra",
  verdict_doubtful: "unclear",
  verdict_unreadable: "not judged",
};

let words = ENGLISH;

/** Called once, before any panel is made: a page in another language is the page opened anew. */
export async function loadWords() {
  const response = await api.fetchApi("/i18n");
  if (!response.ok) return console.warn(`Qwen-Image 2: translations were not loaded (HTTP ${response.status})`);
  const translations = await response.json();
  words = { ...ENGLISH, ...translations[app.extensionManager.setting.get("Comfy.Locale")]?.[KEY] };
}

/**
 * @param {string} key of the table above
 * @param {Object<string, string|number>} [values] what is filled in
 */
export function word(key, values = {}) {
  return words[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}
