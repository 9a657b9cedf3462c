/**
 * The browser part of Qwen-Image 2. A node's definition says what its inputs get here (nodes/frontend.py): this file
 * reads that and adds the widgets.
 */
import { app } from "../../scripts/app.js";
import { rememberGraph } from "./changes.js";
import { addOnlyWith } from "./inactive.js";
import { showMessages } from "./messages.js";
import { NODE_IDS } from "./node_ids.js";
import { element } from "./panel.js";
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
    for (const [name, marked] of marks.get(node.comfyClass) ?? []) {
      const { sizes, meter, measured, references, table, enabled_when: only, row_of: row } = marked;
      if (sizes) addSizePicker(node, name, sizes);
      if (meter) addTokenMeter(node, name);
      if (measured) addBriefMeter(node, measured);
      if (references) addReferences(node, name, references);
      if (table) addTableUpload(node, name, table);
      if (only) addOnlyWith(node, name, only);
      if (row) addRow(node, name, row);
    }
  },
});

/** The classic renderer writes an input's id into its empty text box; a person knows it by its label. */
function nameTextBoxes(node) {
  for (const { name, label, element: box } of node.widgets ?? []) {
    if (label && box?.placeholder === name) box.placeholder = label;
  }
}
