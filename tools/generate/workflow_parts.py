"""What the descriptions of shipped workflows are made of: nodes, groups, and the files of each model."""
from dataclasses import dataclass, field, replace

from ..tiny import (
    EDIT_1,
    LAYERED_1,
    LAYERED_VAE_1,
    TEXT_ENCODER,
    TEXT_ENCODER_1,
    TRANSFORMER,
    TRANSFORMER_1,
    TURBO,
    VAE_1,
    VAE_FILE,
)
from . import workflow_texts_1 as texts_1


@dataclass
class Node:
    """One node: class, inputs (a value, or (node name, output slot)), place and size on the canvas."""

    node_class: str
    at: tuple[int, int]
    size: tuple[int, int]
    inputs: dict = field(default_factory=dict)
    title: str = ""
    text: str = ""  # of a MarkdownNote


@dataclass
class Group:
    title: str
    members: tuple[str, ...]


@dataclass
class Workflow:
    nodes: dict[str, Node]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Model:
    """The files of the loader, and how their model was meant to be sampled."""

    diffusion_model: str = TRANSFORMER
    text_encoder: str = TEXT_ENCODER
    vae: str = VAE_FILE
    preset: str = "Quality 40"
    cfg: float = 1.0
    negative_prompt: str = ""

    @property
    def loader(self) -> dict:
        return {"diffusion_model": self.diffusion_model, "text_encoder": self.text_encoder, "vae": self.vae,
                "variant": "auto", "weight_format": "as stored", "vision_projector": "auto", "device": "auto"}


QWEN_2 = Model()
QWEN_2_TURBO = Model(TURBO, preset="Turbo 8")
QWEN_2_PRUNA = Model(preset="Pruna LoRA 8")
QWEN_1 = Model(TRANSFORMER_1, TEXT_ENCODER_1, VAE_1, "Quality 50", 4.0, texts_1.NEGATIVE)
QWEN_1_LIGHTNING = replace(QWEN_1, preset="Lightning LoRA 4 (1.x)", cfg=1.0, negative_prompt="")
QWEN_1_LAYERED = replace(QWEN_1, diffusion_model=LAYERED_1, vae=LAYERED_VAE_1, negative_prompt=" ")
QWEN_1_EDIT = replace(QWEN_1, diffusion_model=EDIT_1, preset="Quality 40", negative_prompt=" ")
