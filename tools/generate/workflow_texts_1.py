"""Prompts and notes of the shipped workflows of Qwen-Image 1.x."""
from .workflow_texts import DEPTH_CHANGES, EDIT_CHANGES, EDIT_DEPTH_VIEW

FILES = """## Files

Put these into ComfyUI's `models` folder (Comfy-Org's repackaged files of Qwen-Image 1.x; Apache-2.0, commercial use \
included):

| file | folder | size |
|---|---|---|
| `{transformer}` | `diffusion_models` | 40.9 GB |
| `qwen_2.5_vl_7b.safetensors` | `text_encoders` | 16.6 GB |
| `qwen_image_vae.safetensors` | `vae` | 0.3 GB |
{more}
{smaller} A GGUF file or a diffusers folder works as well. Press **R** after adding files.
"""

NO_MORE = ""
LORA_FILE = """| `Qwen-Image-2512-Lightning-4steps-V1.0-bf16.safetensors` (lightx2v) | `loras` | 0.9 GB |
"""
SMALLER = ("Half the size: `qwen_image_2512_fp8_e4m3fn.safetensors` (20.4 GB) and "
           "`qwen_2.5_vl_7b_fp8_scaled.safetensors` (9.4 GB).")
SMALLER_EDIT = ("Half the size: `qwen_image_edit_2511_fp8mixed.safetensors` (20.5 GB) and "
                "`qwen_2.5_vl_7b_fp8_scaled.safetensors` (9.4 GB).")

BASE_FILES = FILES.format(transformer="qwen_image_2512_bf16.safetensors", more=NO_MORE, smaller=SMALLER)
EDIT_FILES = FILES.format(transformer="qwen_image_edit_2511_bf16.safetensors", more=NO_MORE, smaller=SMALLER_EDIT)

BASE_NOTE = BASE_FILES + """
## What to change

- **Prompt**: describe the picture at length. Words that must appear in it go into double quotes.
- **Canvas**: size class 1328 holds the official sizes of 1.x: 1328 x 1328, 1472 x 1104, 1584 x 1056, 1664 x 928.
- **Preset** *Quality 50* and **cfg** 4 are the official settings. Every step runs the model twice, for the prompt and \
for the **negative prompt**.
- The negative prompt lists what to avoid. Qwen's own is a longer list of such words in Chinese.
- Four steps instead of fifty: *qwen_image_1_lightning*.
"""

LIGHTNING_NOTE = FILES.format(transformer="qwen_image_2512_bf16.safetensors", more=LORA_FILE, smaller=SMALLER) + """
## What to change

- **Preset** and LoRA belong together: *Lightning LoRA 4 (1.x)* for files of 4 steps, *Lightning LoRA 8 (1.x)* for 8, \
*Turbo LoRA 2* and *4 (1.x)* for Wuli's.
- **cfg** stays 1: these LoRAs were trained without guidance, and the negative prompt is not used.
- **strength** stays 1. Another LoRA goes between this one and the sampler.
- Prompt and canvas as you like.
"""

EDIT_NOTE = EDIT_FILES + EDIT_CHANGES + """\
- **Prompt**: say what to change, and what to keep.
- **resolution** is what the picture is worked on at; **canvas** follows the picture, because any other size shifts or \
zooms the edit.
- **variant** *auto* knows Edit-2511 by its file or by its name. If yours is called otherwise, set *edit 2511*; for \
Edit-2509 under a name with 2511 in it, *base*.
- **Preset** *Quality 40* and **cfg** 4 are the official settings.
- Nothing outside the change is promised here: *edit_masked* works with these files too.
"""

THREE_NOTE = EDIT_FILES + EDIT_CHANGES + """\
- The model was trained with one to three pictures. More can be connected; the node says so.
- **Prompt**: name them *Picture 1*, *Picture 2*, ..., in the order of the sockets. `<image1>` is written so for you.
- **canvas**: the last picture is the model's own rule; choose the first if that is the one to keep.
"""

LAYERS_NOTE = FILES.format(
    transformer="qwen_image_layered_bf16.safetensors", more=NO_MORE,
    smaller="Half the size: `qwen_image_layered_fp8mixed.safetensors` (20.5 GB) and "
            "`qwen_2.5_vl_7b_fp8_scaled.safetensors` (9.4 GB).").replace(
    "qwen_image_vae.safetensors", "qwen_image_layered_vae.safetensors") + """
## What to change

- **layers**: 2 to 8. The lowest is the ground of the picture; each is RGBA.
- **Prompt**: what the whole picture shows, with what is hidden. Empty, the text encoder writes it, and the node says \
what.
- **resolution** 640 is the official recommendation.
- **Save Page** writes one PSD with a named layer for each. That needs the package psd-tools: \
`python -m pip install "psd-tools>=1.20"` with ComfyUI's Python; or choose png.
- The node says how far all layers laid over each other are from the picture.
"""

DEPTH_NOTE = EDIT_FILES + EDIT_CHANGES + DEPTH_CHANGES

NEGATIVE = ("low resolution, blurry, distorted limbs, malformed fingers, waxy skin, oversaturated, cluttered "
            "composition, garbled text")

EDIT_THREE = (
    "Put the subject of Picture 1 next to the subject of Picture 2 in the place shown in Picture 3. Keep the faces, "
    "clothes and colours of both as they are, and light them like the rest of Picture 3."
)
DEPTH_VIEW = EDIT_DEPTH_VIEW.format(photograph="Picture 1", map="Picture 2")

POTTER = (
    "A potter of about sixty sits at her wheel in a small workshop and looks up with a quiet smile, photographed from "
    "the height of the wheel with a 50 mm lens. Grey hair is tied back loosely, a few strands have come free; fine "
    "lines around the eyes, dried clay on her forearms and on the linen apron. Her wet hands hold a wide bowl that has "
    "just been opened. Morning light falls through a window on the left and shows dust in the air. On the shelf behind "
    "her stand glazed bowls in celadon and rust brown, out of focus, and above them hangs a small enamel sign with "
    "\"CLAY & FIRE\" in dark blue capitals. Natural skin with visible pores, muted colours, shallow depth of field."
)
