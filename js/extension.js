/**
 * The browser part of Qwen-Image 2. A node's definition says what its inputs get here (nodes/frontend.py): this file
 * reads that and adds the widgets.
 */
import { app } from "../../scripts/app.js";
import { rememberGraph } from "./changes.js";
import { addOnlyWith } from "./inactive.js";
import { addLayoutEditor } from "./layout_editor.js";
import { showMessages } from "./messages.js";
import { NODE_IDS } from "./node_ids.js";
import { addPagePreview } from "./page_view.js";
import { element } from "./panel.js";
import { addPresets } from "./presets.js";
import { addReferences } from "./references.js";
import { showRefusals } from "./refusals.js";
import { addRow } from "./rows.js";
import { addSizePicker } from "./size_picker.js";
import { addTableUpload } from "./table_file.js";
import { showChecks } from "./text_check.js";
import { addBriefMeter, addTokenMeter } from "./token_meter.js";
import { loadWords } from "./words.js";

const KEY = "qwen_image_2";

/** What the inputs of each node class get: class -> [[input name, marks], ...] */
const marks = new Map();

app.registerExtension({
  name: "QwenImage2",

  async init() {
    document.head.append(element("link", { rel: "stylesheet", href: new URL("style.css", import.meta.url).href }));
    await loadWords();
    showRefusals();
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODE_IDS.has(nodeData.name)) return;
    const inputs = Object.entries({ ...nodeData.input?.required, ...nodeData.input?.optional });
    marks.set(nodeData.name, inputs.flatMap(([name, [, options]]) => (options?.[KEY] ? [[name, options[KEY]]] : [])));
    showMessages(nodeType);
    showChecks(nodeType);
  },

  afterConfigureGraph: rememberGraph,

  nodeCreated(node) {
    if (NODE_IDS.has(node.comfyClass)) nameTextBoxes(node);
    for (const [name, hints] of marks.get(node.comfyClass) ?? []) {
      const { sizes, meter, measured, laid_out: laidOut, references, boxes_of: connected, presets, table } = hints;
      const { enabled_when: only, row_of: row } = hints;
      if (sizes) addSizePicker(node, name, sizes);
      if (meter) addTokenMeter(node, name);
      if (measured) addBriefMeter(node, measured);
      if (laidOut) addPagePreview(node, measured);
      if (references) addReferences(node, name, references);
      if (table) addTableUpload(node, name, table);
      if (only) addOnlyWith(node, name, only);
      if (connected) addLayoutEditor(node, connected, briefNames);
      if (presets) addPresets(node, presets);
      if (row) addRow(node, name, row);
    }
  },
});

/** The widgets from which a class of briefs makes its page; null: it makes none. */
function briefNames(kind) {
  const hints = marks.get(kind)?.map(([, all]) => all).find((all) => all.laid_out);
  return hints?.measured ?? null;
}

/** The classic renderer writes an input's id into its empty text box; a person knows it by its label. */
function nameTextBoxes(node) {
  for (const { name, label, element: box } of node.widgets ?? []) {
    if (label && box?.placeholder === name) box.placeholder = label;
  }
}
