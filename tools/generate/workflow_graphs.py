"""What the shipped workflows consist of: nodes, their inputs and places. build_workflows.py writes them.

A node that says something after a run, or shows a picture, grows: it has room for that, or is the last of its column.
"""
from collections.abc import Sequence

from ..tiny import CONTROL, ENHANCER
from . import workflow_pages as pages
from .workflow_parts import (
    QWEN_1_LAYERED,
    QWEN_2,
    Group,
    Model,
    Node,
    Workflow,
)

EXAMPLE = "example.png"  # lies in the input folder of every new ComfyUI
SEED = 20260920
EDIT_SEED = 20260921  # an edit with the seed of its source tends to retrace it
BUILT_IN = "built-in (English)"  # Glyph Reference's font that is everywhere


def text_to_image(model: Model, prompt: str, aspect_ratio: str, size: str, prefix: str, note: str) -> Workflow:
    """Loader, prompt, canvas, sampler, decoder, picture, and a note on files and what to change."""
    return Workflow(
        nodes={
            "note": Node("MarkdownNote", (-80, 60), (460, 790), title="Read me", text=note),
            "loader": Node("QwenImage2Loader", (440, 60), (400, 340), model.loader),
            "canvas": Node("QwenImage2EmptyLatent", (440, 500), (400, 350), {
                "aspect_ratio": aspect_ratio, "size": size, "width": 1024, "height": 1024, "batch_size": 1}),
            "prompt": Node("QwenImage2TextEncode", (900, 60), (480, 790), {
                "clip": ("loader", 1), "prompt": prompt, "negative_prompt": model.negative_prompt}),
            "sampler": Node("QwenImage2Sampler", (1440, 60), (340, 790), _sampler_inputs("prompt", model=model) | {
                "latent": ("canvas", 0)}),
            "decode": _decode(1840),
            "save": _save(1840, 260, ("decode", 0), prefix),
        },
        groups=(Group("1  Files", ("loader",)), Group("2  Canvas", ("canvas",)), Group("3  Prompt", ("prompt",)),
                Group("4  Sampling", ("sampler",)), Group("5  Result", ("decode", "save"))))


def with_lora(model: Model, file: str, prompt: str, aspect_ratio: str, size: str, prefix: str, note: str) -> Workflow:
    """Text to image in few steps, by a LoRA between loader and sampler."""
    base = text_to_image(model, prompt, aspect_ratio, size, prefix, note)
    base.nodes["canvas"].at = (440, 800)
    base.nodes["sampler"].inputs["model"] = ("lora", 0)
    lora = Node("QwenImage2LoadLoRA", (440, 480), (400, 200), {
        "model": ("loader", 0), "lora": file, "strength": 1.0, "on": True, "lora_2": "none"})
    nodes = {"note": base.nodes.pop("note"), "loader": base.nodes.pop("loader"), "lora": lora, **base.nodes}
    return Workflow(nodes, (Group("1  Files", ("loader", "lora")), *base.groups[1:]))


def brief(node_class: str, fields: dict, prefix: str) -> Workflow:
    """Loader, brief, prompt and canvas from it, sampler, decoder, picture."""
    return Workflow(
        nodes={
            "note": Node("MarkdownNote", (-80, 60), (460, 790), title="Read me", text=pages.NOTE),
            "loader": Node("QwenImage2Loader", (440, 60), (400, 340), QWEN_2.loader),
            "brief": Node(node_class, (900, 60), (520, 1260), fields),
            "canvas": Node("QwenImage2EmptyLatent", (1480, 60), (400, 350), {
                "aspect_ratio": "custom", "size": "2048", "width": ("brief", 1), "height": ("brief", 2),
                "batch_size": 1}),
            "prompt": Node("QwenImage2TextEncode", (1480, 490), (400, 360), {
                "clip": ("loader", 1), "prompt": ("brief", 0), "negative_prompt": ""}),
            "sampler": Node("QwenImage2Sampler", (1940, 60), (340, 790), _sampler_inputs("prompt") | {
                "latent": ("canvas", 0)}),
            "decode": _decode(2340),
            "save": _save(2340, 260, ("decode", 0), prefix),
        },
        groups=(Group("1  Files", ("loader",)), Group("2  Brief", ("brief",)),
                Group("3  Canvas and prompt", ("canvas", "prompt")), Group("4  Sampling", ("sampler",)),
                Group("5  Result", ("decode", "save"))))


def enhanced(prompt: str, note: str, prefix: str) -> Workflow:
    """A short prompt, written out by a language model that also chooses the canvas; off until it is switched on."""
    fields = {"clip": ("enhancer", 0), "prompt": prompt, "enabled": False,
              "system_prompt": "Qwen-Image-2.1-PE-T2I/system_prompt.txt", "aspect_ratio": "3:4", "size": "2048",
              "width": 1024, "height": 1024, "follow_proposal": True, "seed": SEED, "max_tokens": 0}
    base = brief("QwenImage2PromptEnhance", fields, prefix)
    base.nodes["note"].text, base.nodes["brief"].size = note, (520, 790)
    enhancer = Node("QwenImage2LoadEnhancer", (440, 500), (400, 120), {"enhancer": ENHANCER})
    nodes = {"note": base.nodes.pop("note"), "loader": base.nodes.pop("loader"), "enhancer": enhancer, **base.nodes}
    return Workflow(nodes, (Group("1  Files", ("loader", "enhancer")), Group("2  Enhancer", ("brief",)),
                            *base.groups[2:]))


def deck(fields: dict, prefix: str) -> Workflow:
    """A brief for each slide of an outline, and one file of all pictures."""
    base = brief("QwenImage2DeckOutline", fields | {"seed": SEED, "text": "in the picture"}, prefix)
    base.nodes["note"].text = pages.DECK_NOTE
    base.nodes["sampler"].inputs["seed"] = ("brief", 6)
    nodes = base.nodes | {
        # PDF: it needs nothing that has to be installed.
        "deck": Node("QwenImage2SaveDeck", (2340, 930), (480, 260), {
            "images": ("decode", 0), "filename_prefix": f"{prefix}-file", "files": "PDF", "page": "as the pictures",
            "texts": ("brief", 3), "notes": ("brief", 4), "text": "in the picture", "layouts": ("brief", 7)}),
    }
    return Workflow(nodes, (*(Group("2  Outline", ("brief",)) if "brief" in group.members else group
                              for group in base.groups[:-1]), Group("5  Result", ("decode", "save", "deck"))))


def from_table(fields: dict, note: str, prefix: str) -> Workflow:
    """A brief for each row of a table, files called by it, and a contact sheet with their names."""
    base = brief("QwenImage2PosterBrief", fields | {"row": ("table", 0)}, prefix)
    nodes = base.nodes
    nodes["note"].text = note
    nodes["sampler"].inputs["seed"] = ("table", 3)
    nodes["save"].inputs["filename_prefix"] = ("table", 2)
    table = Node("QwenImage2Table", (440, 480), (400, 540), {
        "file": "built-in example", "columns": "title", "text": "", "name": f"{prefix}-{{{{row}}}}", "first": 1,
        "count": 100, "seed": SEED, "encoding": "auto"})
    sheet = {
        "label": Node("QwenImage2GlyphReference", (2880, 60), (400, 240), {
            "text": ("table", 2), "font": BUILT_IN, "letter_height": 48, "direction": "horizontal"}),
        "labelled": Node("ImageStitch", (2880, 480), (400, 180), {
            "image1": ("decode", 0), "image2": ("label", 0), "direction": "down", "match_image_size": False,
            "spacing_width": 0, "spacing_color": "white"}),
        "grid": Node("ImageGrid", (3340, 60), (400, 160), {
            "images": ("labelled", 0), "columns": 4, "cell_width": 384, "cell_height": 540, "padding": 12}),
        "sheet": Node("SaveImage", (3340, 300), (480, 590), {
            "images": ("grid", 0), "filename_prefix": f"{prefix}-contact-sheet"}, title="Contact sheet")}
    first = {name: nodes.pop(name) for name in ("note", "loader")}
    return Workflow({**first, "table": table, **nodes, **sheet},
                    (Group("1  Files", ("loader",)), Group("2  Table", ("table",)), Group("3  Brief", ("brief",)),
                     *(Group(f"{number}{group.title[1:]}", group.members)
                       for number, group in enumerate(base.groups[2:], start=4)),
                     Group("7  Contact sheet", tuple(sheet))))


def edit(prompt: str, note: str, prefix: str, references: int = 1, canvas: str = "last reference",
         output: int = 0, model: Model = QWEN_2) -> Workflow:
    """Loader, pictures, instruction, sampler, decoder, result. output: of the decoder, 1 is RGBA."""
    names = [f"picture{number}" for number in range(1, references + 1)]
    return Workflow(
        nodes={
            "note": Node("MarkdownNote", (-80, 60), (460, 790), title="Read me", text=note),
            "loader": Node("QwenImage2Loader", (440, 60), (400, 340), model.loader),
            **{name: Node("LoadImage", (440, 500 + 420 * index), (400, 340), {"image": EXAMPLE},
                          title=f"Picture {index + 1}")
               for index, name in enumerate(names)},
            "edit": Node("QwenImage2EditEncode", (900, 60), (480, 790),
                         _edit_inputs(prompt, [(name, 0) for name in names], canvas=canvas, model=model)),
            "sampler": Node("QwenImage2Sampler", (1440, 60), (340, 790), _sampler_inputs("edit", EDIT_SEED, model)),
            "decode": _decode(1840),
            "save": _save(1840, 260, ("decode", output), prefix),
        },
        groups=(Group("1  Files", ("loader",)), Group("2  Pictures", tuple(names)), Group("3  Instruction", ("edit",)),
                Group("4  Sampling", ("sampler",)), Group("5  Result", ("decode", "save"))))


def layers(note: str, prefix: str) -> Workflow:
    """Loader, picture, its layers, their composite, and one file of them."""
    model = QWEN_1_LAYERED
    return Workflow(
        nodes={
            "note": Node("MarkdownNote", (-80, 60), (460, 790), title="Read me", text=note),
            "loader": Node("QwenImage2Loader", (440, 60), (400, 340), model.loader),
            "picture": Node("LoadImage", (440, 500), (400, 350), {"image": EXAMPLE}, title="Picture"),
            "layers": Node("QwenImage2Layers", (900, 60), (480, 790), {
                "model": ("loader", 0), "clip": ("loader", 1), "vae": ("loader", 2), "image": ("picture", 0),
                "prompt": "", "layers": 4, "resolution": "640", "seed": SEED, "steps": 50, "cfg": model.cfg,
                "negative_prompt": model.negative_prompt, "caption_language": "English", "guidance": "as trained"}),
            "page": Node("QwenImage2SavePage", (1440, 60), (400, 200), {
                "image": ("layers", 0), "filename_prefix": prefix, "format": "psd"}),
            "preview": Node("PreviewImage", (1440, 360), (400, 490), {"images": ("layers", 0)}, title="Each layer"),
            "save": _save(1900, 60, ("layers", 1), prefix),
        },
        groups=(Group("1  Files", ("loader",)), Group("2  Picture", ("picture",)), Group("3  Layers", ("layers",)),
                Group("4  Layers as files", ("page", "preview")), Group("5  Composite", ("save",))))


# What the second of two edits sees. RGBA: what the first edit has made transparent stays so.
PICTURE, FIRST_RESULT = ("picture", 0), ("decode1", 1)


def two_edits(first: str, second: str, titles: tuple[str, str], note: str, prefix: str,
              sees: tuple[tuple[str, int], ...] = (PICTURE,), model: Model = QWEN_2) -> Workflow:
    """Two instructions: one below the other for the same picture, or one after the other where the second sees the
    first one's result."""
    chained = FIRST_RESULT in sees
    nodes = {
        "note": Node("MarkdownNote", (-80, 60), (460, 790), title="Read me", text=note),
        "loader": Node("QwenImage2Loader", (440, 60), (400, 340), model.loader),
        "picture": Node("LoadImage", (440, 500), (400, 350), {"image": EXAMPLE}, title="Picture"),
    }
    for number, prompt in enumerate((first, second), start=1):
        right, down = (1520 * (number - 1), 60) if chained else (0, 60 + 950 * (number - 1))
        nodes |= {
            f"edit{number}": Node("QwenImage2EditEncode", (900 + right, down), (480, 790),
                                  _edit_inputs(prompt, sees if number == 2 else (PICTURE,), model=model)),
            f"sampler{number}": Node("QwenImage2Sampler", (1440 + right, down), (340, 790),
                                     _sampler_inputs(f"edit{number}", EDIT_SEED + number - 1, model)),
            f"decode{number}": _decode(1840 + right, down, f"sampler{number}"),
            f"save{number}": _save(1840 + right, down + 200, (f"decode{number}", 0), f"{prefix}-{number}"),
        }
    return Workflow(nodes, (
        Group("1  Files", ("loader",)), Group("2  Picture", ("picture",)),
        *(Group(f"{number + 2}  {title}", tuple(f"{part}{number}" for part in ("edit", "sampler", "decode", "save")))
          for number, title in enumerate(titles, start=1))))


def region_edit(prompt: str, note: str, prefix: str, outpaint: bool) -> Workflow:
    """An edit of a region that is cut out before and stitched in after; outpaint: of an enlarged canvas."""
    extend = {"extend": Node("QwenImage2ExtendCanvas", (900, 60), (400, 180), {
        "image": ("picture", 0), "left": 0, "top": 0, "right": 384, "bottom": 0})} if outpaint else {}
    source = "extend" if outpaint else "picture"
    return Workflow(
        nodes={
            "note": Node("MarkdownNote", (-80, 60), (460, 790), title="Read me", text=note),
            "loader": Node("QwenImage2Loader", (440, 60), (400, 340), QWEN_2.loader),
            "picture": Node("LoadImage", (440, 500), (400, 350), {"image": EXAMPLE}, title="Picture"),
            **extend,
            "crop": Node("QwenImage2CropForEdit", (900, 500), (400, 350), {
                "image": (source, 0), "mask": (source, 1), "context": 0.5, "resolution": "1024", "feather": 16}),
            "edit": Node("QwenImage2EditEncode", (1360, 60), (480, 790),
                         _edit_inputs(prompt, [("crop", 0)], resolution="as it is")),
            "sampler": Node("QwenImage2Sampler", (1900, 60), (340, 790), _sampler_inputs("edit", EDIT_SEED)),
            "decode": _decode(2300),
            "stitch": Node("QwenImage2StitchEdit", (2300, 260), (480, 100), {
                "region": ("crop", 2), "part": ("decode", 1), "align": not outpaint}),
            "save": _save(2300, 440, ("stitch", 0), prefix),
        },
        groups=(Group("1  Files", ("loader",)), Group("2  Picture", ("picture",)),
                Group("3  Region", ("crop", *extend)), Group("4  Instruction", ("edit",)),
                Group("5  Sampling", ("sampler",)), Group("6  Result", ("decode", "stitch", "save"))))


def control(prompt: str, titles: Sequence[str], strength: float, note: str, prefix: str, canny: bool = False,
            aspect_ratio: str = "3:4") -> Workflow:
    """Text to image that follows pictures, or the edges of one. titles: of the pictures."""
    base = text_to_image(QWEN_2, prompt, aspect_ratio, "1024", prefix, note)
    names = [f"picture{number}" for number in range(1, len(titles) + 1)]
    pictures = {name: Node("LoadImage", (440, 700 + 420 * index), (400, 340), {"image": EXAMPLE}, title=title)
                for index, (name, title) in enumerate(zip(names, titles, strict=True))}
    edges = {"canny": Node("Canny", (900, 60), (400, 120), {
        "image": (names[0], 0), "low_threshold": 0.1, "high_threshold": 0.3})} if canny else {}
    applied, model = {}, ("loader", 0)
    for index, name in enumerate(names):
        applied[f"control{index + 1}"] = _apply(260 + 480 * index, model, strength, {
            "image": ("canny" if canny else name, 0)})
        model = (f"control{index + 1}", 0)
    for name, at in (("canvas", (1360, 60)), ("prompt", (1360, 500)), ("sampler", (1900, 60)), ("decode", (2300, 60)),
                     ("save", (2300, 260))):
        base.nodes[name].at = at
    base.nodes["prompt"].size, base.nodes["sampler"].inputs["model"] = (480, 350), model
    nodes = {"note": base.nodes.pop("note"), "loader": base.nodes.pop("loader"), "file": _control_file(), **pictures,
             **edges, **applied, **base.nodes}
    return Workflow(nodes, (
        Group("1  Files", ("loader", "file")), Group("2  Pictures", tuple(names)),
        Group("3  Control", (*edges, *applied)), Group("4  Canvas and prompt", ("canvas", "prompt")),
        Group("5  Sampling", ("sampler",)), Group("6  Result", ("decode", "save"))))


LAYOUT = {"boxes": "", "font": "Noto Sans (built-in)", "picture": "grey", "width": 1024, "height": 1024,
          "language": "English"}


def from_layout(fields: dict, instruction: str, note: str, prefix: str) -> Workflow:
    """A poster drawn after its own typeset page as the reference."""
    nodes = _typeset(fields, note) | {
        "prompt": Node("StringConcatenate", (2020, 60), (460, 240), {
            "string_a": instruction, "string_b": ("layout", 5), "delimiter": " "}, title="Instruction"),
        "edit": Node("QwenImage2EditEncode", (2020, 380), (460, 790), _edit_inputs(
            ("prompt", 0), [("layout", 1)], canvas="first reference")),
        "sampler": Node("QwenImage2Sampler", (2540, 60), (340, 790), _sampler_inputs("edit")),
        "decode": _decode(2940),
        "save": _save(2940, 260, ("decode", 0), prefix),
    }
    return Workflow(nodes, (
        Group("1  Files", ("loader",)), Group("2  Brief", ("brief",)), Group("3  Layout", ("layout", "preview")),
        Group("4  Instruction", ("prompt", "edit")), Group("5  Sampling", ("sampler",)),
        Group("6  Result", ("decode", "save"))))


def control_layout(fields: dict, note: str, prefix: str) -> Workflow:
    """A poster along the edges of its own typeset page."""
    nodes = _typeset(fields, note) | {
        "control": _apply(60, ("loader", 0), 0.8, {"image": ("layout", 4)}),
        "canvas": Node("QwenImage2EmptyLatent", (2020, 560), (400, 350), {
            "aspect_ratio": "custom", "size": "2048", "width": ("layout", 6), "height": ("layout", 7),
            "batch_size": 1}),
        "prompt": Node("QwenImage2TextEncode", (2480, 60), (400, 360), {
            "clip": ("loader", 1), "prompt": ("layout", 5), "negative_prompt": ""}),
        "sampler": Node("QwenImage2Sampler", (2940, 60), (340, 790), _sampler_inputs("prompt") | {
            "model": ("control", 0), "latent": ("canvas", 0)}),
        "decode": _decode(3340),
        "save": _save(3340, 260, ("decode", 0), prefix),
    }
    nodes["control"].at, nodes["file"] = (2020, 60), _control_file()
    return Workflow(nodes, (
        Group("1  Files", ("loader", "file")), Group("2  Brief", ("brief",)), Group("3  Layout", ("layout", "preview")),
        Group("4  Control", ("control",)), Group("5  Canvas and prompt", ("canvas", "prompt")),
        Group("6  Sampling", ("sampler",)), Group("7  Result", ("decode", "save"))))


def _typeset(fields: dict, note: str) -> dict[str, Node]:
    return {
        "note": Node("MarkdownNote", (-80, 60), (460, 790), title="Read me", text=note),
        "loader": Node("QwenImage2Loader", (440, 60), (400, 340), QWEN_2.loader),
        "brief": Node("QwenImage2PosterBrief", (900, 60), (520, 1260), fields),
        "layout": Node("QwenImage2Layout", (1480, 60), (480, 1010), {"layout": ("brief", 4), **LAYOUT}),
        "preview": Node("PreviewImage", (1480, 1150), (480, 520), {"images": ("layout", 1)}, title="The typeset page"),
    }


def control_inpaint(prompt: str, note: str, prefix: str) -> Workflow:
    """A region painted anew by the control network, and stitched in."""
    return Workflow(
        nodes={
            "note": Node("MarkdownNote", (-80, 60), (460, 790), title="Read me", text=note),
            "loader": Node("QwenImage2Loader", (440, 60), (400, 340), QWEN_2.loader),
            "file": _control_file(),
            "picture": Node("LoadImage", (440, 700), (400, 350), {"image": EXAMPLE}, title="Picture"),
            "crop": Node("QwenImage2CropForEdit", (900, 60), (400, 350), {
                "image": ("picture", 0), "mask": ("picture", 1), "context": 0.5, "resolution": "1024", "feather": 16}),
            "control": _apply(500, ("loader", 0), 1.0, {"mask": ("crop", 1), "inpaint_image": ("crop", 0)}),
            "canvas": Node("QwenImage2VAEEncode", (1360, 60), (480, 120), {
                "image": ("crop", 0), "vae": ("loader", 2)}, title="Canvas of the region's size"),
            "prompt": Node("QwenImage2TextEncode", (1360, 300), (480, 550), {
                "clip": ("loader", 1), "prompt": prompt, "negative_prompt": ""}),
            "sampler": Node("QwenImage2Sampler", (1900, 60), (340, 790), _sampler_inputs("prompt") | {
                "model": ("control", 0), "latent": ("canvas", 0)}),
            "decode": _decode(2300),
            "stitch": Node("QwenImage2StitchEdit", (2300, 260), (480, 100), {
                "region": ("crop", 2), "part": ("decode", 1), "align": False}),
            "save": _save(2300, 440, ("stitch", 0), prefix),
        },
        groups=(Group("1  Files", ("loader", "file")), Group("2  Picture", ("picture",)),
                Group("3  Region and control", ("crop", "control")),
                Group("4  Canvas and prompt", ("canvas", "prompt")), Group("5  Sampling", ("sampler",)),
                Group("6  Result", ("decode", "stitch", "save"))))


def _control_file() -> Node:
    return Node("QwenImage2LoadControl", (440, 480), (400, 120), {"control_model": CONTROL})


def _apply(down: int, model: tuple[str, int], strength: float, pictures: dict) -> Node:
    return Node("QwenImage2ApplyControl", (900, down), (400, 400), {
        "model": model, "control": ("file", 0), "vae": ("loader", 2), **pictures, "strength": strength, "start": 0.0,
        "end": 1.0, "reference_rows": False})


def upscale(prompt: str, note: str, prefix: str) -> Workflow:
    """A picture of the user's own, at twice its size."""
    return Workflow(
        nodes={
            "note": Node("MarkdownNote", (-80, 60), (460, 790), title="Read me", text=note),
            "loader": Node("QwenImage2Loader", (440, 60), (400, 340), QWEN_2.loader),
            "picture": Node("LoadImage", (440, 500), (400, 350), {"image": EXAMPLE}, title="Picture"),
            "prompt": Node("QwenImage2TextEncode", (900, 60), (480, 790), {
                "clip": ("loader", 1), "prompt": prompt, "negative_prompt": ""}),
            "upscale": Node("QwenImage2Upscale", (1440, 60), (400, 790), _upscale_inputs(("picture", 0), "")),
            "save": _save(1900, 60, ("upscale", 0), prefix),
        },
        groups=(Group("1  Files", ("loader",)), Group("2  Picture", ("picture",)), Group("3  Prompt", ("prompt",)),
                Group("4  Enlarging", ("upscale",)), Group("5  Result", ("save",))))


def upscale_poster(note: str, prefix: str) -> Workflow:
    """A poster whose layout is drawn at 2048, enlarged to 4096, and read."""
    base = brief("QwenImage2PosterBrief", pages.POSTER, prefix)
    base.nodes["note"].text, base.nodes["decode"] = note, _decode(2340)
    nodes = base.nodes | {
        "upscale": Node("QwenImage2Upscale", (2880, 60), (400, 790),
                        _upscale_inputs(("decode", 0), ("brief", 3), 4096)),
        "check": Node("QwenImage2TextCheck", (3340, 60), (480, 590), _check_inputs(("upscale", 0), ("brief", 3))),
        "save": _save(3880, 60, ("upscale", 0), prefix),
    }
    return Workflow(nodes, (*base.groups[:-1], Group("5  2048", ("decode",)), Group("6  4096", ("upscale",)),
                            Group("7  Check", ("check",)), Group("8  Result", ("save",))))


def _upscale_inputs(image: tuple[str, int], expected: str | tuple[str, int], longer_side: int = 0) -> dict:
    return {"model": ("loader", 0), "positive": ("prompt", 0), "negative": ("prompt", 1), "vae": ("loader", 2),
            "image": image, "scale": 2.0, "longer_side": longer_side, "strength": 0.3, "seed": EDIT_SEED,
            "preset": QWEN_2.preset, "steps": 40, "cfg": QWEN_2.cfg, "tile": 0, "overlap": 0,
            "expected_text": expected, "control_strength": 0.8, "tile_reference": False, "guidance": "as trained"}


def checked(prompt: str, expected: str, note: str, prefix: str) -> Workflow:
    """Four pictures of a prompt; the one that says best what it should is kept."""
    base = text_to_image(QWEN_2, prompt, "3:4", "1024", prefix, note)
    base.nodes["canvas"].inputs["batch_size"] = 4
    nodes = base.nodes | {
        "check": Node("QwenImage2TextCheck", (1840, 260), (480, 590), _check_inputs(("decode", 0), expected)),
        "overlay": Node("PreviewImage", (2380, 60), (440, 790), {"images": ("check", 0)}, title="What was read"),
        "best": Node("QwenImage2PickBest", (2880, 60), (480, 240), {"images": ("decode", 0), "scores": ("check", 2)}),
        "save": _save(2880, 380, ("best", 0), prefix),
    }
    return Workflow(nodes, (*base.groups[:-1], Group("5  Check", ("decode", "check", "overlay")),
                            Group("6  Result", ("best", "save"))))


def repair(expected: str, note: str, prefix: str) -> Workflow:
    """A picture whose wrong words are edited until they read right, and nothing else of it."""
    return Workflow(
        nodes={
            "note": Node("MarkdownNote", (-80, 60), (460, 790), title="Read me", text=note),
            "loader": Node("QwenImage2Loader", (440, 60), (400, 340), QWEN_2.loader),
            "picture": Node("LoadImage", (440, 500), (400, 350), {"image": EXAMPLE}, title="Picture"),
            "repair": Node("QwenImage2RepairText", (900, 60), (480, 1280), {
                "model": ("loader", 0), "clip": ("loader", 1), "vae": ("loader", 2), "image": ("picture", 0),
                "expected_text": expected, "attempts": 3, "seed": EDIT_SEED, "preset": QWEN_2.preset, "steps": 40,
                "cfg": QWEN_2.cfg, "negative_prompt": "", "instruction": "", "letters": True,
                "font": "Noto Sans (built-in)", "context": 0.5, "resolution": "1024", "feather": 16,
                "match_case": False, "match_punctuation": False, "tolerance": 0.0, "allow_extra": False}),
            "save": _save(1440, 60, ("repair", 0), prefix),
        },
        groups=(Group("1  Files", ("loader",)), Group("2  Picture", ("picture",)), Group("3  Repair", ("repair",)),
                Group("4  Result", ("save",))))


def _decode(across: int, down: int = 60, sampler: str = "sampler") -> Node:
    return Node("QwenImage2VAEDecode", (across, down), (480, 120), {"samples": (sampler, 0), "vae": ("loader", 2)})


def _save(across: int, down: int, picture: tuple[str, int], prefix: str) -> Node:
    return Node("SaveImage", (across, down), (480, 590), {"images": picture, "filename_prefix": prefix})


def _check_inputs(image: tuple[str, int], expected: str | tuple[str, int]) -> dict:
    return {"image": image, "expected_text": expected, "match_case": False, "match_punctuation": False,
            "tolerance": 0.0, "allow_extra": False}


def _edit_inputs(prompt: str | tuple[str, int], pictures: Sequence[tuple[str, int]], resolution: str = "1024",
                 canvas: str = "last reference", model: Model = QWEN_2) -> dict:
    sockets = {f"images.image_{number}": picture for number, picture in enumerate(pictures, start=1)}
    return {"clip": ("loader", 1), "vae": ("loader", 2), **sockets, "prompt": prompt,
            "negative_prompt": model.negative_prompt, "resolution": resolution, "canvas": canvas, "width": 1024,
            "height": 1024, "grid_guard": True, "batch_size": 1, "edit_model": "Edit Plus (2509, 2511)",
            "centre_references": False}


def _sampler_inputs(source: str, seed: int = SEED, model: Model = QWEN_2) -> dict:
    return {"model": ("loader", 0), "positive": (source, 0), "negative": (source, 1), "latent": (source, 2),
            "seed": seed, "preset": model.preset, "steps": 40, "cfg": model.cfg, "denoise": 1.0,
            "guidance": "as trained", "cfg_start": 0.0, "cfg_end": 1.0, "cap_shift": False}
