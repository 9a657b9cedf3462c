/**
 * Presets: the values of a node under a name, kept by the server in the user's folder (nodes/routes.py).
 */
import { get, post } from "./asking.js";
import { addPanel, asOneStep, element, setter, setValues, widgetOf } from "./panel.js";
import { message, word } from "./words.js";

const ROUTE = "presets";

/** As many characters as the server takes. */
const MAX_NAME = 50;

/**
 * @param {LGraphNode} node
 * @param {string[]} names of the widgets whose values are kept
 */
export function addPresets(node, names) {
  const list = element("select", { "aria-label": word("presets") });
  const name = element("input", { type: "text", maxLength: MAX_NAME, placeholder: word("preset_name"),
    "aria-label": word("preset_name"), onkeydown: (event) => event.key === "Enter" && attempt(save) });
  const said = element("p", { className: "said", role: "status" });
  const row = element("div", { className: "presets", role: "group", "aria-label": word("presets") },
    list, button(word("preset_load"), load), name, button(word("preset_save"), save));
  addPanel(node, "qwen_image_2_presets", element("div", {}, row, said), 30);
  fill([]);
  // The list is asked for when somebody is about to look at it: another window may have saved one.
  row.addEventListener("pointerenter", () => attempt(refresh));
  row.addEventListener("focusin", (event) => row.contains(event.relatedTarget) || attempt(refresh));

  /** Do it, and say what has come of it, or why nothing has. */
  async function attempt(work) {
    try {
      said.textContent = (await work()) ?? said.textContent;
    } catch (error) {
      said.textContent = error.message;
    }
  }

  async function refresh() {
    fill((await asked({})).names);
  }

  async function load() {
    if (!list.value) return word("preset_choose");
    const { inputs, notes } = await asked({ name: list.value });
    asOneStep(() => setValues(node, inputs));
    return [word("preset_loaded", { name: list.value }), ...notes.map(message)].join(" ");
  }

  async function save() {
    const values = names.map((each) => [each, setter(node, each)]).filter(([, owner]) => owner.node)
      .map(([each, owner]) => [each, widgetOf(owner.node, owner.name)?.value]);
    const body = { node: node.comfyClass, name: name.value, inputs: Object.fromEntries(values) };
    const saved = told(await post(ROUTE, JSON.stringify(body), word("no_answer"))).name;
    await refresh();
    list.value = saved;
    name.value = "";
    return word("preset_saved", { name: saved });
  }

  async function asked(query) {
    return told(await get(ROUTE, { node: node.comfyClass, ...query }, word("no_answer")));
  }

  function fill(presets) {
    const before = list.value;
    const options = presets.map((preset) => element("option", { value: preset, textContent: preset }));
    list.replaceChildren(element("option", { value: "", textContent: word("presets") }), ...options);
    list.value = presets.includes(before) ? before : "";
  }

  function button(textContent, work) {
    return element("button", { type: "button", textContent, onclick: () => attempt(work) });
  }
}

/** The answer, or what the server has refused. */
function told(answer) {
  if (answer.parts) throw new Error(message(answer.parts));
  return answer;
}
