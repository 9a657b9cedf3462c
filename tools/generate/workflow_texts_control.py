"""Prompts and notes of the shipped workflows with a control network."""
from .workflow_texts import EDIT_CHANGES, FILES

CONTROL_FILES = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + """
The control network is under the same licence: `Qwen-Image-2.1-Fun-Controlnet-Union.safetensors` (alibaba-pai, 7.6 GB) \
in `model_patches`. Comfy-Org's int8 file of half the size works as well.
"""

PICTURES = """\
- One network knows canny, depth, grayscale, HED, lineart, MLSD, pose and scribble; the picture alone says which.
- Core makes Canny pictures. For the others install *comfyui_controlnet_aux*: its **Depth Anything V2** for depth, \
**DWPose Estimator** for a skeleton in the colours that this network knows.
"""
STRENGTH = """\
- **strength** 1 is as trained. Lower it, or let it **end** at 0.6, where the prompt should have more of a say.
- The picture is stretched to the canvas: choose a canvas of its ratio.
- The KV cache of the prompt stays on: it is computed once, and once more where control ends.
"""

CANNY_NOTE = CONTROL_FILES + EDIT_CHANGES + """\
- **Canny** finds its edges. A photograph gives shapes; a page with set type gives letters, each in its place. Lower \
both thresholds where lines are missing.
- **Prompt**: describe the whole poster, the words of the page in double quotes too.
""" + STRENGTH + PICTURES

DEPTH_NOTE = CONTROL_FILES + """
## What to change

- **Depth map**: near is white, far is black. The example is a photograph: load a depth map in its place, or put \
*comfyui_controlnet_aux*'s **Depth Anything V2** between it and **Apply Control**. The workflow *edit_depth* makes one \
without further files.
- A skeleton instead of a depth map: **DWPose Estimator** of the same pack, nothing else changes.
- **Prompt**: what is to be seen in this room, from this place.
""" + STRENGTH

LAYOUT_NOTE = CONTROL_FILES + """
## What to change

- **Brief**: the texts. **Layout** sets them in real fonts, and its **edges** are the control picture: each letter \
stands where the page has it.
- **boxes** of **Layout** moves texts: `[{"name": "title", "y": 0.7}]`; the prompt's words for places follow.
- Other control pictures add up: put a second **Apply Control** behind the first for the picture area.
""" + STRENGTH

INPAINT_NOTE = CONTROL_FILES + EDIT_CHANGES + """\
- **Mask**: right-click the picture, *Open in MaskEditor*, paint what is to be painted anew.
- **Crop for Edit** enlarges the region; **Apply Control** shows the network what is kept of it, grey where the mask is.
- **Prompt**: describe the finished picture, not the change: this is no edit.
- The network keeps pixels outside the mask close to the picture, not equal. **Stitch Edit** makes them equal: outside \
the mask and its **feather** every pixel is the picture's own, bit for bit.
- For an outline inside the mask connect a control picture of the region's size as **image**.
"""

TWO_NOTE = CONTROL_FILES + """
## What to change

- **Picture 1** says where things are in depth, **Picture 2** how a body stands, or any two others. Load maps in place \
of the example.
- What the two ask for adds up. Begin with 0.6 each; where they disagree, give the weaker one an earlier **end**.
- Both are the same network: it is loaded once, and its part of the KV cache is computed once.
- A third: copy **Apply Control** and put it behind the second.
""" + PICTURES

TEA_POSTER = (
    "A vertical poster for a tea house, printed in two inks on rough cream paper. The shapes stand exactly where the "
    "control picture has its lines: dark green surfaces, fine ochre lines, generous paper-coloured areas between them. "
    "At the foot, in large dark green capitals, stands \"FIRST FLUSH\", and below it, smaller: \"Spring teas, from the "
    "5th of April\". All lettering is crisp and correctly spelled, and nothing else is written anywhere."
)
ROOM = (
    "A quiet reading room in an old stone house in late afternoon: oak shelves, a worn leather chair, a low table with "
    "an open book and a glass of water. Light falls through a tall window and shows dust in the air. Photographed with "
    "a 35 mm lens, natural colours, fine grain."
)
VASE = (
    "A bright kitchen with a red ceramic vase with three white tulips on the table, lit by the window like everything "
    "around it, photographed with a 50 mm lens, natural colours."
)
DANCER = (
    "A dancer in a dark blue costume on the bare stage of an old theatre, one arm raised, empty red seats in the "
    "distance, a single warm light from the left, photographed from the wings with a 50 mm lens."
)
