"""Loaders: checkpoint files -> MODEL, CLIP, VAE."""
from pathlib import Path

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..messages import Message, Refusal
from .bridge import devices
from .bridge.files import folders, miniature
from .bridge.keys import FAMILY_2
from .bridge.loading import VARIANTS, family_of, load_model, open_model
from .bridge.quant.weight_format import WEIGHT_FORMATS
from .bridge.text_encoders.families import (
    AUTO,
    load_text_encoder,
    open_text_encoder,
    projectors_beside,
    text_encoder_summary,
)
from .bridge.vae import family_of_spec, load_vae, open_vae
from .common import categories
from .common.schemas import schema
from .notices import notify

NONE = "none"


def diffusion_model_input() -> io.Combo.Input:
    return io.Combo.Input(
        "diffusion_model", folders.choices(folders.TRANSFORMER),
        tooltip="The transformer, of Qwen-Image 2.x or 1.x: a .safetensors or .gguf file in models/diffusion_models, a "
                "diffusers folder below it (its name ends in a slash), or a whole checkpoint in models/checkpoints. "
                "License of the 2.x weights: Qwen Research License, non-commercial; of 1.x: Apache-2.0.")


def text_encoder_input() -> io.Combo.Input:
    return io.Combo.Input(
        "text_encoder", folders.choices(folders.TEXT_ENCODER),
        tooltip="Qwen3-VL-8B-Instruct for Qwen-Image 2.x, Qwen2.5-VL-7B-Instruct for 1.x: a .safetensors or .gguf file "
                "in models/text_encoders, a folder below it, or a whole checkpoint in models/checkpoints that holds "
                "one.")


def vae_input() -> io.Combo.Input:
    return io.Combo.Input(
        "vae", folders.choices(folders.VAE),
        tooltip="The VAE of the transformer's family, Qwen-Image 2.x (RGBA, 64 latent channels) or 1.x (16): a file in "
                "models/vae, a folder below it, or a whole checkpoint in models/checkpoints that holds one.")


def variant_input() -> io.Combo.Input:
    return io.Combo.Input(
        "variant", VARIANTS, default="auto",
        tooltip="What many files do not say. 2.x: base or turbo; auto: turbo if the name contains 'turbo', else base. "
                "1.x: edit 2511 for models that were trained like Edit-2511; auto: if the file is marked so, or its "
                "name contains '2511'.")


def weight_format_input() -> io.Combo.Input:
    return io.Combo.Input(
        "weight_format", list(WEIGHT_FORMATS), default="as stored", advanced=True,
        tooltip="as stored: the file's own dtype, memory-mapped without a copy. The others convert or quantize while "
                "loading; Save Quantized (Qwen-Image 2) saves the result, so that it is done once.")


def vision_projector_input() -> io.Combo.Input:
    return io.Combo.Input(
        "vision_projector", [AUTO, NONE, *folders.projectors()], default=AUTO, optional=True, advanced=True,
        tooltip="GGUF text encoders only: the separate mmproj file that holds the vision tower. auto: the matching "
                "file beside it. Prompts work without it; edits with references need it.")


def device_input() -> io.Combo.Input:
    return io.Combo.Input(
        "device", devices.choices(), default=devices.AUTO, optional=True, advanced=True,
        tooltip="Where text encoder and VAE compute. auto: where ComfyUI puts them. CPU: slow, and leaves all VRAM to "
                "the transformer. A second graphics card is listed by its name.")


def about_device(name: str, device: str) -> Message | None:
    return None if device == devices.AUTO else Message("part_device", "{file} runs on {device}.", file=name,
                                                       device=device)


def projector_path(choice: str) -> Path | str | None:
    """auto as it is, None for none, or the chosen file."""
    if choice == AUTO:
        return AUTO
    return None if choice == NONE else folders.resolve(folders.TEXT_ENCODER, choice)


def projectors_found(text_encoder: str | None, choice: str | None) -> list[str]:
    """What auto can choose from: a projector that is put there later makes ComfyUI load the text encoder anew.

    None: linked, and not yet known. Whichever text encoder it will be, its projector is one of all.
    """
    if text_encoder is None or choice is None:
        return folders.projectors()
    beside = projectors_beside(folders.resolve(folders.TEXT_ENCODER, text_encoder)) if choice == AUTO else []
    return [path.name for path in beside]


def about_part(node, name: str) -> Message | None:
    """What to tell of a text encoder or VAE where it is the miniature's.

    Inside the combined loader, whose parts speak through one node, the model has said it for all three.
    """
    inside = "." in str(node.hidden.unique_id)
    return miniature.ABOUT if name == miniature.NAME and not inside else None


def refuse_mixture(*names: str) -> None:
    """Raises ValueError where only some of the parts are the miniature: they would draw noise without a word."""
    if miniature.NAME in names and set(names) != {miniature.NAME}:
        raise Refusal("miniature_mixed", "The {miniature} does not work with other files. Choose {miniature} three "
                      "times, or three real files.", miniature=miniature.NAME)


def refuse_two_families(model: str, clip: str, vae: str) -> None:
    """Of which family each part is."""
    if len({model, clip, vae}) > 1:
        raise Refusal("parts_of_two_families", "The transformer belongs to Qwen-Image {model}, the text encoder to "
                      "Qwen-Image {clip} and the VAE to Qwen-Image {vae}; together they give noise. Choose three files "
                      "of one family.", model=model, clip=clip, vae=vae)


class QwenImage2LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2LoadModel",
            display_name="Load Diffusion Model (Qwen-Image 2)",
            category=categories.LOADERS,
            description="Loads a transformer of Qwen-Image 2.x or 1.x, from any published form of file.",
            search_aliases=["qwen image loader", "unet loader", "diffusion model", "qwen-image 2.1"],
            inputs=[diffusion_model_input(), variant_input(), weight_format_input()],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, diffusion_model, **others):
        return folders.stamp(folders.TRANSFORMER, diffusion_model)

    @classmethod
    def execute(cls, diffusion_model, variant, weight_format):
        model = load_model(folders.resolve(folders.TRANSFORMER, diffusion_model), diffusion_model, variant,
                           weight_format)
        about = miniature.ABOUT if diffusion_model == miniature.NAME else None
        return io.NodeOutput(model, ui=notify(cls, in_words(diffusion_model, model),
                                              about_mlps(diffusion_model, model), about))


def in_words(name: str, model) -> Message:
    spec = model.model.spec
    return Message("transformer_loaded", "{file}: {variant} model, {blocks} blocks of width {width}, {size} GiB, "
                   "{weights}.", file=name, variant=model.model.variant, blocks=spec.layers, width=spec.dim,
                   size=f"{model.model_size() / 2**30:.2f}", weights=model.model.weights)


def about_mlps(name: str, model) -> Message | None:
    return None if not model.model.split_mlps else Message(
        "mlp_in_halves", "{file} stores gate and projection of an MLP in different types, or with one scale each, so "
        "they stay two matrices and a step takes a little longer. Choose a file with fused MLPs, such as Comfy-Org's, "
        "to avoid that.", file=name)


class QwenImage2LoadTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2LoadTextEncoder",
            display_name="Load Text Encoder (Qwen-Image 2)",
            category=categories.LOADERS,
            description="Loads a text encoder with its prompt template: Qwen3-VL-8B of Qwen-Image 2.x, or "
                        "Qwen2.5-VL-7B of 1.x.",
            search_aliases=["qwen3-vl", "qwen2.5-vl", "clip loader", "text encoder", "qwen image clip"],
            inputs=[text_encoder_input(), weight_format_input(), vision_projector_input(), device_input()],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, text_encoder, vision_projector=AUTO, **others):
        return [folders.stamp(folders.TEXT_ENCODER, text_encoder), projectors_found(text_encoder, vision_projector)]

    @classmethod
    def execute(cls, text_encoder, weight_format, vision_projector=AUTO, device=devices.AUTO):
        clip = load_text_encoder(folders.resolve(folders.TEXT_ENCODER, text_encoder), text_encoder, weight_format,
                                 projector_path(vision_projector), devices.device_of(device))
        return io.NodeOutput(clip, ui=notify(cls, *text_encoder_summary(clip), about_device(text_encoder, device),
                                             about_part(cls, text_encoder)))


class QwenImage2LoadVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2LoadVAE",
            display_name="Load VAE (Qwen-Image 2)",
            category=categories.LOADERS,
            description="Loads the VAE of Qwen-Image 2.x, which is RGBA, or that of 1.x, with diffusers or Wan key "
                        "names.",
            search_aliases=["vae loader", "qwen image vae", "rgba vae"],
            inputs=[vae_input(), device_input()],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, vae, **others):
        return folders.stamp(folders.VAE, vae)

    @classmethod
    def execute(cls, vae, device=devices.AUTO):
        loaded = load_vae(folders.resolve(folders.VAE, vae), vae, devices.device_of(device))
        told = Message("vae_loaded", "{file}: VAE, {size} MiB, {weights}.", file=vae,
                       size=f"{loaded.model_size() / 2**20:.0f}", weights=str(loaded.vae_dtype).removeprefix("torch."))
        return io.NodeOutput(loaded, ui=notify(cls, told, about_texture_fix(vae, loaded), about_device(vae, device),
                                               about_part(cls, vae)))


def about_texture_fix(name: str, vae) -> Message | None:
    """madebyollin's finetune has the names and shapes of the published VAE: only what it is called tells."""
    words = name.lower().replace("_", "-")
    return Message("vae_texture_fix", "{file} is Texture-Fix, a finetune of the Qwen-Image-2.1 VAE: it takes and gives "
                   "the same latents, with less of a grid in fine textures.", file=name
                   ) if vae.family == FAMILY_2 and "texture-fix" in words else None


class QwenImage2Loader(io.ComfyNode):
    """Expands into the three loaders above, so ComfyUI's own cache keeps each part while its choice stands."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="QwenImage2Loader",
            display_name="Load Qwen-Image 2",
            category=categories.LOADERS,
            description="Loads transformer, text encoder and VAE. Changing one of them reloads that part only.",
            search_aliases=["qwen image loader", "checkpoint loader", "qwen-image 2.1", "load qwen"],
            inputs=[diffusion_model_input(), text_encoder_input(), vae_input(), variant_input(),
                    weight_format_input(), vision_projector_input(), device_input()],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
            enable_expand=True,
        )

    @classmethod
    def fingerprint_inputs(cls, diffusion_model, text_encoder, vae, vision_projector=AUTO, **others):
        return [folders.stamp(folders.TRANSFORMER, diffusion_model), folders.stamp(folders.TEXT_ENCODER, text_encoder),
                folders.stamp(folders.VAE, vae), projectors_found(text_encoder, vision_projector)]

    @classmethod
    def execute(cls, diffusion_model, text_encoder, vae, variant, weight_format, vision_projector=AUTO,
                device=devices.AUTO):
        refuse_mixture(diffusion_model, text_encoder, vae)
        # A wrong file is refused before the first of three large ones is read.
        _, network = open_model(folders.resolve(folders.TRANSFORMER, diffusion_model), diffusion_model)
        language = open_text_encoder(folders.resolve(folders.TEXT_ENCODER, text_encoder), text_encoder,
                                     projector_path(vision_projector))
        _, autoencoder = open_vae(folders.resolve(folders.VAE, vae), vae)
        refuse_two_families(family_of(network.spec), language.encoder.family, family_of_spec(autoencoder.spec))
        graph = GraphBuilder()
        model = graph.node("QwenImage2LoadModel", diffusion_model=diffusion_model, variant=variant,
                           weight_format=weight_format)
        clip = graph.node("QwenImage2LoadTextEncoder", text_encoder=text_encoder, weight_format=weight_format,
                          vision_projector=vision_projector, device=device)
        decoder = graph.node("QwenImage2LoadVAE", vae=vae, device=device)
        return io.NodeOutput(model.out(0), clip.out(0), decoder.out(0), expand=graph.finalize())
