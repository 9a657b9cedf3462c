"""Prompts and notes of the shipped workflows that enlarge."""
from .workflow_texts import EDIT_CHANGES, FILES

PICTURE = "A photograph with fine, natural detail: sharp edges, real textures, no blur and no compression artefacts."

_FILES = FILES.format(transformer="qwen_image_2.1_bf16.safetensors")
_UPSCALE = """\
- **Strength** is the sigma that drawing begins with: 0.1 sharpens and leaves letters alone, 0.3 redraws textures and \
edges, 0.6 redraws shapes. It means the same at every size, unlike *denoise*.
- Above twice the size it takes several passes. All tiles are drawn in one run and blended at every step, so there are \
no seams; colours are held to the source's.
- **Tile** 0 leaves the tiles to memory and time. A Turbo model takes the preset *Turbo 8* here, too.
- **Expected text**: the words of the picture. A line that was right and is wrong afterwards is put back.
"""

TWICE_NOTE = _FILES + EDIT_CHANGES + """\
- **Prompt**: what the picture shows. Every tile sees all of it, so name what is everywhere: material, light, style.
""" + _UPSCALE

POSTER_NOTE = _FILES + """
## What to change

- **Poster Brief**: the words, the style and the size class. 2048 is the largest that the model was trained on: layout \
and letters are drawn there, in the first stage.
- **Longer side** 4096 is the second stage's size.
- **Text Check** reads the large picture and says which words are right.
""" + _UPSCALE
