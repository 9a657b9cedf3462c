"""Every kind of input from outside: name -> what makes it ready in a folder of its own."""
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from . import adapters, checkpoints, pictures, requests, texts
from .attempt import Kind

PARTS = {maker: cache(maker) for maker in (checkpoints.transformer, checkpoints.vae, checkpoints.vae_1,
                                          checkpoints.text_encoder, checkpoints.text_encoder_1, checkpoints.enhancer)}


def prepare(folder: Path) -> None:
    """ComfyUI on the CPU, which writes below `folder` alone. The pack's root must not be on sys.path."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args
    args.cpu = True
    args.disable_dynamic_vram = True
    import folder_paths
    for set_directory in (folder_paths.set_user_directory, folder_paths.set_temp_directory,
                          folder_paths.set_output_directory, folder_paths.set_input_directory):
        place = folder / set_directory.__name__
        place.mkdir()
        set_directory(str(place))


def _of(make: Callable, maker: Callable) -> Callable[[Path], Kind]:
    """A kind of checkpoint, whose names and shapes are drawn up when it is wanted."""
    return lambda folder: make(PARTS[maker]())(folder)


KINDS: dict[str, Callable[[Path], Kind]] = {
    "transformer": _of(checkpoints.safetensors, checkpoints.transformer),
    "transformer-folder": _of(checkpoints.folder_of, checkpoints.transformer),
    "transformer-gguf": _of(checkpoints.gguf_file, checkpoints.transformer),
    "quantization": _of(checkpoints.quantized, checkpoints.transformer),
    "vae": _of(checkpoints.safetensors, checkpoints.vae),
    "vae-1": _of(checkpoints.safetensors, checkpoints.vae_1),
    "text-encoder": _of(checkpoints.safetensors, checkpoints.text_encoder),
    "text-encoder-gguf": _of(checkpoints.llama_cpp_files, checkpoints.text_encoder),
    "text-encoder-1": _of(checkpoints.safetensors, checkpoints.text_encoder_1),
    "text-encoder-1-gguf": _of(checkpoints.llama_cpp_files_1, checkpoints.text_encoder_1),
    "enhancer": _of(checkpoints.safetensors, checkpoints.enhancer),
    "lora": _of(adapters.lora, checkpoints.transformer),
    "brief": texts.pages("QwenImage2PosterBrief", "QwenImage2SlideBrief", "QwenImage2InfographicBrief",
                         "QwenImage2ComicBrief"),
    "outline": texts.pages("QwenImage2DeckOutline"),
    "text-check": texts.text_check,
    "prompt": texts.prompt,
    "answer": texts.answer,
    "system-prompt": texts.system_prompt,
    "route": requests.route,
    "workflow": requests.workflow_file,
    "file-name": requests.file_name,
    "region": pictures.region,
    "references": pictures.references,
    "deck": pictures.deck,
    "font": pictures.font,
}
