"""The nodes, thin: schema, checks, one call. Everything that builds ComfyUI objects is in bridge/."""
from comfy_api.latest import ComfyExtension, io

from .briefs import QwenImage2ComicBrief, QwenImage2InfographicBrief, QwenImage2PosterBrief, QwenImage2SlideBrief
from .control import QwenImage2ApplyControl, QwenImage2LoadControl
from .decks import QwenImage2DeckOutline, QwenImage2SaveDeck
from .edit import QwenImage2EditEncode
from .enhance import QwenImage2LoadEnhancer, QwenImage2PromptEnhance
from .glyphs import QwenImage2GlyphReference
from .latent import QwenImage2EmptyLatent
from .layers import QwenImage2Layers
from .layout import QwenImage2Layout
from .loaders import QwenImage2Loader, QwenImage2LoadModel, QwenImage2LoadTextEncoder, QwenImage2LoadVAE
from .loras import QwenImage2LoadLoRA
from .memory import QwenImage2Memory
from .reference_strength import QwenImage2ReferenceStrength
from .region import QwenImage2CropForEdit, QwenImage2ExtendCanvas, QwenImage2StitchEdit
from .repair_text import QwenImage2RepairText
from .routes import add_routes
from .sampler import QwenImage2Sampler, QwenImage2Sigmas
from .save import QwenImage2SaveQuantized
from .save_page import QwenImage2SavePage
from .table import QwenImage2Table
from .text import QwenImage2TextEncode
from .text_check import QwenImage2PickBest, QwenImage2TextCheck
from .upscale import QwenImage2Upscale
from .vae import QwenImage2VAEDecode, QwenImage2VAEEncode

NODES: list[type[io.ComfyNode]] = [
    QwenImage2Loader,
    QwenImage2LoadModel,
    QwenImage2LoadTextEncoder,
    QwenImage2LoadVAE,
    QwenImage2LoadLoRA,
    QwenImage2Memory,
    QwenImage2LoadControl,
    QwenImage2ApplyControl,
    QwenImage2TextEncode,
    QwenImage2EditEncode,
    QwenImage2ReferenceStrength,
    QwenImage2LoadEnhancer,
    QwenImage2PromptEnhance,
    QwenImage2PosterBrief,
    QwenImage2SlideBrief,
    QwenImage2InfographicBrief,
    QwenImage2ComicBrief,
    QwenImage2DeckOutline,
    QwenImage2Layout,
    QwenImage2EmptyLatent,
    QwenImage2Sampler,
    QwenImage2Sigmas,
    QwenImage2VAEEncode,
    QwenImage2VAEDecode,
    QwenImage2Layers,
    QwenImage2Upscale,
    QwenImage2CropForEdit,
    QwenImage2StitchEdit,
    QwenImage2ExtendCanvas,
    QwenImage2SaveQuantized,
    QwenImage2TextCheck,
    QwenImage2PickBest,
    QwenImage2GlyphReference,
    QwenImage2RepairText,
    QwenImage2SaveDeck,
    QwenImage2SavePage,
    QwenImage2Table,
]


class QwenImage2Extension(ComfyExtension):
    async def on_load(self) -> None:
        add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
