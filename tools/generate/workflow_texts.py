"""Prompts and notes of the shipped workflows."""

FILES = """## Files

Put these into ComfyUI's `models` folder (Comfy-Org's repackaged Qwen-Image 2.1 files; Qwen Research License, \
non-commercial):

| file | folder | size |
|---|---|---|
| `{transformer}` | `diffusion_models` | 14.2 GB |
| `qwen3vl_8b_bf16.safetensors` | `text_encoders` | 17.5 GB |
| `qwen_image_2.1_vae_bf16.safetensors` | `vae` | 0.7 GB |

A diffusers folder works as well: it appears in the same menus with a slash at its end. Press **R** after adding files.
"""

BASE_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + """
## What to change

- **Prompt**: describe the picture at length. Words that must appear in it go into double quotes.
- **Canvas**: ratio and size class. 2048 is the model's native 2K table.
- **Preset**: *Quality 40* is the official schedule, *Fast 25* the same with fewer steps. Both follow the canvas size.
- **cfg** stays 1. Above 1 the negative prompt counts, and every step takes twice as long.
- **batch_size**: picture *k* uses seed + *k*; the prompt is computed once for all of them.
"""

TURBO_NOTE = FILES.format(transformer="qwen_image_2.1_turbo_bf16.safetensors") + """
## What to change

- **Preset** stays *Turbo 8*: these are the eight steps the Turbo weights were trained with, at every size. With \
another preset they give muddy pictures.
- **cfg** stays 1.
- **variant** is read from the file's name. If your Turbo file has another name, set it to *turbo*.
- Prompt and canvas as you like.
"""

LORA_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors").replace("""

A diffusers""", """
| `p_q_image_2.1_8_steps_v0.1_comfyui_bf16.safetensors` (Pruna) | `loras` | 0.3 GB |

A diffusers""") + """
## What to change

- **Preset** and LoRA belong together. *Load LoRA* says after a run which preset a file was trained for, and the \
sampler says when another one is chosen. Pruna's files of 5 and 8 steps take *Pruna LoRA 5* and *8*, lightx2v's \
*Lightning LoRA 4*, Viggle's *Viggle LoRA 4* and *6*. `qwen_image_2.1_turbo_lora_avg_rank_178_bf16.safetensors` makes \
a Turbo model of this one, and takes its preset *Turbo 8*.
- **cfg** stays 1: these LoRAs were trained without guidance.
- **LoRA 2** adds another file, such as a style; choosing one opens the next row. **On** leaves a row's file out and \
keeps the choice.
- Prompt and canvas as you like.
"""

POSTER_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + """
## What to change

- **Prompt**: keep the form. First the whole poster, then area by area from top to bottom: what stands there, every \
literal text in double quotes with its size, weight and colour. English and Chinese may stand side by side.
- Small type is the hardest: keep letters above about 20 pixels (50 for traditional Chinese) at the final size.
- **Canvas**: 3:4 at 2048 is 1792 x 2400. At 1024 the headlines stay right and small lines suffer first.
- A word that comes out wrong tends to stay wrong with other seeds: shorten it, enlarge it or give it more room.
- The decoder's **rgba** output carries the model's transparency, for posters "on a transparent background".
"""

EDIT_CHANGES = """
## What to change

- **Picture**: load yours instead of the example.
"""

EDIT_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + EDIT_CHANGES + """\
- **Prompt**: say what to change, and what to keep.
- **resolution** is the size class the picture is worked on at; **canvas** follows the picture, because any other size \
shifts or zooms the edit.
- On exactly 1024 x 1024 edits are known to fail. The guard moves them to 1056 x 1056 and says so on the node.
- Nothing outside the change is promised here: for that use *edit_masked*.
"""

MULTI_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + EDIT_CHANGES + """\
- Connect up to ten pictures; each picture of a batch counts. The node shows a free socket as long as there is one.
- **Prompt**: name them, `<image1>`, `<image2>`, ..., or subjects fuse.
- **canvas**: the last picture is the model's own rule; choose the first if that is the one to keep.
- One picture takes over? Put *Reference Strength* between *Encode Edit* and *Sampler*: it turns one picture down, or \
has only the masked part of it looked at.
"""

MASKED_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + EDIT_CHANGES + """\
- **Mask**: right-click the picture, *Open in MaskEditor*, paint what may change.
- **Prompt**: describe the change; the model sees the region and its surroundings (**context**), enlarged to \
**resolution**.
- Outside the mask and its **feather** every pixel of the result is the picture's own, bit for bit.
- **Align** moves the edited part back to where its source lies, and says by how many pixels.
"""

OUTPAINT_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + EDIT_CHANGES + """\
- **Extend Canvas**: how many pixels to add on which side. The new area starts as a mirror image.
- **Prompt**: say what continues there.
- The picture itself stays as it is, bit for bit, but for **feather** pixels along the seam; set it to 0 for none.
"""

TEXT_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + EDIT_CHANGES + """\
- **Prompt**: the old words and the new ones in double quotes, and what of the lettering stays.
- New words of about the old length keep their place and size best.
- To be sure of everything around the sign, mask it: the same prompt works in *edit_masked*.
"""

STYLE_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + """
## What to change

- **Picture 1** is what to draw, **Picture 2** how to draw it.
- **canvas** is *first reference*: the result has the size of picture 1.
- **Prompt**: name what carries the style (lines, palette, paper, light), and say that nothing of the second picture's \
content may come over.
"""

ADD_REMOVE_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + EDIT_CHANGES + """\
- Two instructions for the same picture. Mute the row that you do not need (Ctrl+M).
- **Add**: say what, where, how large, and which light falls on it.
- **Remove**: say what, and what is behind it.
"""

POSE_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + """
## What to change

- **Picture 1**: the person. **Picture 2**: the pose, a photograph or the coloured skeleton of a pose detector.
- **canvas** is *first reference*. Where the pose needs another format, choose *last reference*.
- **Prompt**: face, clothes and surroundings are named as what stays; of the second picture only the pose counts.
"""

SKETCH_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + """
## What to change

- **Picture 1**: the look, a photograph of subject or material. **Picture 2**: the lines, a sketch or an edge picture \
(core's *Canny* node makes one).
- **canvas** is *last reference*: the result has the sketch's size, so that lines stay where they are.
- **Prompt**: say what the lines mean, and that none of them may remain as a drawn line.
"""

VIEWPOINT_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + EDIT_CHANGES + """\
- **Prompt**: say where the camera goes (turned by how many degrees, higher, closer) and what stays.
- What the picture does not show is invented. Large turns change it most: go in steps, with *edit_chain*.
"""

CUT_OUT_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + EDIT_CHANGES + """\
- **Save** gets the decoder's **rgba** output: a PNG with real transparency. Its **alpha** output is a MASK for core's \
nodes, 1 where nothing is.
- Soft edges (hair, glass) come as partial alpha. Opaque parts often have an alpha a little below 255.
"""

CHAIN_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + EDIT_CHANGES + """\
- The second edit works on the first one's result as it is decoded, without a file in between: it costs one trip \
through the VAE, and no rounding to 8 bits. Copy the row for a third.
- Change the second instruction and only that row runs again.
- One instruction with both changes is often as good, and loses nothing.
"""

DEPTH_CHANGES = """\
- **Depth map**: near is white, far is black. Save it for a ControlNet, or load a map of your own in its place.
- **New view**: say where the camera goes and what stays. The second edit sees the photograph and its depth map, \
which says what lies in front of what. What the photograph does not show is invented.
- Only want the map? Mute the second row (Ctrl+M).
"""

DEPTH_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + EDIT_CHANGES + DEPTH_CHANGES

ENHANCED_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + """
The enhancer is off until you switch it on. It needs two more files, under the same licence:

- `qwen3.5_9b_qwen_image_2.1_pe_t2i.int8_convrot.safetensors` in `text_encoders`, 9.5 GB
- `system_prompt.txt`, which comes with the original *Qwen-Image-2.1-PE-T2I*, in `text_encoders/Qwen-Image-2.1-PE-T2I`

## What to change

- **enabled** on *Enhance Prompt*. Off, nothing of it is loaded, and your prompt and canvas are used as they are.
- **Prompt**: a few words. What you put in double quotes is drawn as you wrote it.
- **Without the enhancer's files**: connect the **CLIP** of *Load Qwen-Image 2* to *Enhance Prompt* and set \
**system_prompt** to *built-in*. The text encoder then writes the prompt itself.
- The same inputs give the same prompt, at once. Another **seed** gives other words.
"""

CHECK_NEEDS = """
## Once

*Text Check* reads with RapidOCR: `python -m pip install "rapidocr>=3.10,<4" onnxruntime` with ComfyUI's Python, then \
restart. Its models are in the package; nothing is downloaded later.
"""

CHECKED_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + CHECK_NEEDS + """
## What to change

- **Prompt**: the literal texts in double quotes, and the same ones in **expected_text**, one per line.
- **batch_size** is 4: four seeds at once, checked one by one. *Pick Best* keeps the highest score, of equal ones the \
first; picture *k* has the sampler's seed + *k*.
- **What was read** shows all four: green right, red wrong, orange not expected.
- **allow_extra**: switch it on where the picture may say more, such as shop signs in a photograph.
- A line that fails in all four stays hard: shorten or enlarge it, or go on with *repair_text*.
"""

REPAIR_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + CHECK_NEEDS + """
## What to change

- **Picture**: load yours instead of the example, and write what it should say into **expected_text**. Or connect the \
**layout** of a brief: then each text must be in its box, and a missing one is written there.
- **Repair Text** reads the picture, edits what is wrong, reads again, and keeps only what reads better: at most \
**attempts** rounds, each with other seeds. A picture that passes at once is not edited at all.
- **font** sets the right words as a reference for the edit, each where it belongs: choose one like the picture's.
- Outside of the repaired regions and their **feather** every pixel keeps its bits. Without a layout a missing line \
has no place: it goes into the highest empty band.
- Not repaired yet? Change the seed, or load the result and run again. The node says what was tried.
"""

EDIT_INSTRUCT = (
    "Change the background to a quiet beach at sunset with soft orange light. Keep the subject, its pose, its colours "
    "and its size exactly as they are."
)
EDIT_MULTI = (
    "Put the subject of <image1> next to the subject of <image2> in the place shown in <image3>. Keep the faces, "
    "clothes and colours of both as they are, and light them like the rest of <image3>."
)
EDIT_MASKED = "Replace it with a red ceramic vase with three white tulips, lit like the rest of the room."
EDIT_OUTPAINT = (
    "Continue the scene naturally to the right: the mirrored part becomes new surroundings in the same light, "
    "perspective and style, without repeating the subject."
)

EDIT_TEXT = (
    "Replace the words on the sign with \"OPEN DAILY\". Keep the typeface, the colour and the size of the letters, the "
    "sign's perspective and material, and everything else in the picture exactly as it is."
)
EDIT_STYLE = (
    "Redraw <image1> in the style of <image2>: the same kind of line, palette, texture and light. Keep the "
    "composition, the subject and every object of <image1> where it is. Take no object and no person over from "
    "<image2>."
)
EDIT_ADD = (
    "Add a small round wooden table with a steaming white cup on it in the right foreground, lit from the same side as "
    "the rest. Keep everything else exactly as it is."
)
EDIT_REMOVE = (
    "Remove the object in the foreground and show what lies behind it, continued naturally. Keep everything else "
    "exactly as it is."
)
EDIT_POSE = (
    "Let the person of <image1> take exactly the pose shown in <image2>. Keep the face, the hair, the clothes, the "
    "background and the light of <image1>. Take nothing but the pose from <image2>."
)
EDIT_SKETCH = (
    "Turn the line drawing in <image2> into a photograph. Follow its lines exactly in shape and place, with the "
    "subject, the materials and the light of <image1>. No drawn line remains visible."
)
EDIT_VIEWPOINT = (
    "Show the same scene from a camera moved 45 degrees to the left around the subject, at the same height and "
    "distance. Keep the subject's shape, colours and details, the surroundings and the light."
)
EDIT_CUT_OUT = "Remove the background, so that only the subject remains, on a transparent background."
REPAIR_WORDS = "MORNING BREAD\nOPEN DAILY 6 TO 11\n12 Mill Lane\nFRESH EVERY DAY"
EDIT_CHAIN_1 = (
    "Change the season to deep winter, with fresh snow on everything that lies outdoors. Keep the subject and the "
    "composition exactly as they are."
)
EDIT_CHAIN_2 = (
    "Change the time of day to night, with warm light from the windows. Keep everything else exactly as it is."
)

EDIT_DEPTH = (
    "Turn this photograph into its depth map: smooth greys without any texture or colour, the nearest surfaces white, "
    "the farthest ones black. Keep every outline exactly where it is."
)
# A family has names of its own for its references.
EDIT_DEPTH_VIEW = (
    "Show the scene of {photograph} from a camera moved 30 degrees to the right around the subject, at the same height "
    "and distance. {map} is its depth map: what is brighter there is nearer and moves more. Keep the subject, the "
    "materials, the colours and the light of {photograph}, and let no grey of the depth map remain."
)
DEPTH_VIEW = EDIT_DEPTH_VIEW.format(photograph="<image1>", map="<image2>")

BAKERY = (
    "A vertical poster for a small bakery in flat screen print, on warm cream paper with a thin brown frame. At the "
    "top stands \"MORNING BREAD\" in very large bold dark brown capitals on one line, and below it \"清晨面包\" in "
    "large brown brush characters. The middle shows a round loaf, two croissants and a sheaf of wheat in ochre, brown "
    "and white, without any lettering. Below the picture, centred, in medium capitals: \"OPEN DAILY 6 TO 11\", and "
    "below it, smaller: \"12 Mill Lane\". At the foot a brown strip with the words \"FRESH EVERY DAY\" in cream. All "
    "lettering is crisp, correctly spelled and evenly spaced, and nothing else is written anywhere."
)
BAKERY_WORDS = "MORNING BREAD\n清晨面包\nOPEN DAILY 6 TO 11\n12 Mill Lane\nFRESH EVERY DAY"

NIGHT_MARKET = (
    "A poster for a small night market on the river, lanterns and food stalls, warm and lively. Title "
    "\"NIGHT MARKET\", below it \"河边夜市\" and \"Every Friday in May, 6 pm\"."
)

LIGHTHOUSE = (
    "A lighthouse of white stone on a low granite headland at first light, seen from the shingle beach below it. The "
    "sea is calm and silver, thin mist lies over the water, and the lamp is still burning, a small warm point against "
    "a sky that turns from slate blue to pale apricot. In the foreground a weathered wooden sign stands in the dry "
    "grass beside a narrow path; it reads \"NORTH POINT\" in hand-painted dark blue capitals, and below it in smaller "
    "letters \"est. 1874\". A red rowing boat lies upside down on the stones to the right. Photographed on a 35 mm "
    "lens with great depth of field, soft side light, fine natural grain, quiet colours."
)

POSTER = (
    "A vertical bilingual event poster in English and Chinese for a harbour night market, printed in a flat, modern "
    "silkscreen style with visible paper grain and slightly misregistered inks. The background is a deep ultramarine "
    "night sky that fades to turquoise towards the horizon. The palette is limited to ultramarine, turquoise, warm "
    "vermilion, cream white and a bright lantern yellow; there are no other colours, no gradients inside the shapes "
    "and no photographic textures. The composition is strictly ordered in five horizontal bands with generous cream "
    "margins on all four sides, and everything is aligned to the same left edge.\n"
    "Band one, at the very top, is a thin line of small cream capitals with wide letter spacing. On the left it reads "
    "\"HARBOUR ARTS COUNCIL\" and on the right, on the same baseline, \"港口艺术委员会\". A fine cream rule runs "
    "below it over the full width.\n"
    "Band two holds the title and fills almost a third of the poster. The English title stands on two lines in an "
    "extremely bold condensed sans serif in lantern yellow: the first line reads \"NIGHT\", the second line reads "
    "\"MARKET\". The letters are as tall as the band allows and almost touch each other. To the right of the English "
    "title, set vertically from top to bottom in equally heavy cream brush characters, stands the Chinese title "
    "\"海港夜市\". A vermilion square seal with rounded corners sits below the last character; inside it, in cream "
    "seal script, are the two characters \"开市\".\n"
    "Band three is the illustration and the largest area. It shows a row of seven market stalls along a wooden quay, "
    "seen straight from the front. Each stall has a striped awning in vermilion and cream and hangs full of round "
    "paper lanterns that glow yellow. From left to right the stalls sell steamed dumplings in bamboo baskets, grilled "
    "squid on skewers, cut mangoes and lychees, potted orchids, hand-bound notebooks, blue-and-white porcelain bowls, "
    "and glasses of iced tea. The third stall carries a hanging sign with the word \"FRUIT\" and the sixth stall a "
    "sign with the characters \"瓷器\". People in simple flat shapes stand in front of the stalls: a grandmother with "
    "a child on her shoulders, two students sharing a skewer, a man on a bicycle with a basket of oranges, a woman who "
    "photographs the lanterns. Behind the stalls the dark silhouettes of three fishing boats lie on the turquoise "
    "water, and a full moon in cream stands exactly above the middle stall; its reflection falls on the water in "
    "seven short horizontal strokes.\n"
    "Band four gives the facts in two columns. The left column is English, the right column is Chinese, and their "
    "lines stand on the same baselines. Left, in bold cream letters: \"SATURDAY 14 JUNE\", below it in regular weight "
    "\"18:00 – 23:30\", below it \"Pier 7, Old Harbour\", and below it in lantern yellow \"FREE ENTRY\". Right, in "
    "the same sizes, weights and colours: \"六月十四日 星期六\", \"晚上六点至十一点半\", \"旧港七号码头\" and "
    "\"免费入场\". Between the two columns a thin vertical cream rule runs from the first to the last line.\n"
    "Band five, at the bottom, is a solid vermilion strip that bleeds off the left, right and lower edge. On it, in "
    "cream, the line \"60 STALLS · LIVE MUSIC · LANTERN PARADE AT NINE\" is centred, and below it, smaller, "
    "\"六十个摊位 · 现场音乐 · 九点灯笼巡游\". In the lower right corner of the strip stands a small cream drawing of "
    "an anchor inside a circle.\n"
    "All lettering is crisp, correctly spelled and evenly spaced; every literal text appears exactly once and nothing "
    "else is written anywhere on the poster. The print has sharp edges, even ink and a calm, confident rhythm, like a "
    "screen print from a good studio, photographed flat and perfectly straight without any frame, shadow or wall."
)
