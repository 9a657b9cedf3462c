#!/usr/bin/env python3
"""Train the miniature of assets/miniature.

    python tools/miniature/train.py vae            the autoencoder: half an hour on two cores
    python tools/miniature/train.py transformer    some hours on two cores, minutes on a GPU
    python tools/miniature/train.py export         write both to assets/miniature

Each goes on where it was stopped; `transformer --shipped` begins with the files in assets/miniature instead of random
weights. States and logs are in the folder --work; a training with another number of steps starts in another folder.
Like dev.py, this sets up the environment that it needs.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pack import load_pack

load_pack()
from qwen_image_2.tools.cli import command_line, environment, installer  # noqa: E402

SEED = 2026
STEPS = {"vae": 5500, "transformer": 11000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("vae", "transformer", "export"))
    parser.add_argument("--work", type=Path, default=Path("miniature-training"), help="folder for states and logs")
    parser.add_argument("--steps", type=int, help=f"length of the training ({STEPS})")
    parser.add_argument("--shipped", action="store_true", help="transformer: begin with the shipped weights")
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"), help="use this ComfyUI")
    options = parser.parse_args()
    _enter_environment(options.comfyui)
    options.work.mkdir(parents=True, exist_ok=True)
    from qwen_image_2.tools.miniature import runs
    steps = options.steps or STEPS.get(options.part)
    if options.part == "vae":
        runs.vae(options.work, steps, SEED)
    elif options.part == "transformer":
        runs.transformer(options.work, steps, SEED, options.shipped)
    else:
        runs.export(options.work)


def _enter_environment(comfyui: Path | None) -> None:
    """Go on in the Python that has torch, with ComfyUI importable."""
    place = environment.existing(Path(comfyui)) if comfyui else environment.ensure(
        environment.current_recipe(), installer.install, print)
    if not environment.is_running_in(place):
        sys.exit(command_line.hand_over([str(place.python), *sys.argv, "--comfyui", str(place.comfyui)]))
    sys.path.insert(0, str(place.comfyui))
    from comfy.cli_args import args
    args.cpu = True  # ComfyUI only encodes prompts here; the training itself finds a GPU by itself
    args.disable_dynamic_vram = True


if __name__ == "__main__":
    main()
