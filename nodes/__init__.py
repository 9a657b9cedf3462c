"""The nodes, thin: schema, checks, one call. Everything that builds ComfyUI objects is in bridge/."""
from comfy_api.latest import ComfyExtension, io

from .edit import QwenImage2EditEncode
from .latent import QwenImage2EmptyLatent
from .loaders import QwenImage2Loader, QwenImage2LoadModel, QwenImage2LoadTextEncoder, QwenImage2LoadVAE
from .region import QwenImage2CropForEdit, QwenImage2ExtendCanvas, QwenImage2StitchEdit
from .routes import add_routes
from .sampler import QwenImage2Sampler, QwenImage2Sigmas
from .text import QwenImage2TextEncode
from .vae import QwenImage2VAEDecode, QwenImage2VAEEncode

NODES: list[type[io.ComfyNode]] = [
    QwenImage2Loader,
    QwenImage2LoadModel,
    QwenImage2LoadTextEncoder,
    QwenImage2LoadVAE,
    QwenImage2TextEncode,
    QwenImage2EditEncode,
    QwenImage2EmptyLatent,
    QwenImage2Sampler,
    QwenImage2Sigmas,
    QwenImage2VAEEncode,
    QwenImage2VAEDecode,
    QwenImage2CropForEdit,
    QwenImage2StitchEdit,
    QwenImage2ExtendCanvas,
]


class QwenImage2Extension(ComfyExtension):
    async def on_load(self) -> None:
        add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
