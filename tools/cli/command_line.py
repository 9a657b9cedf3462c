"""The command line of dev.py: reads it, checks what can be checked at once, gets into the environment, reports errors.

It starts on Python's standard library alone and then runs dev.py again inside the environment.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from ..comfyui import models, pictures, workflow
from ..comfyui.server import require_free_port
from ..pack import ROOT
from ..render import command as render_command
from . import benchmarks, environment, installer, output, process, repository
from .environment import Installation
from .errors import UserError

DEV = ROOT / "tools" / "dev.py"


def main(arguments: list[str] | None = None) -> int:
    """Carry out one command; the exit code is 0, 1 (a sentence on stderr), 2 (wrong arguments) or 130 (Ctrl-C)."""
    words = sys.argv[1:] if arguments is None else arguments
    options = parse(words)
    try:
        return dispatch(options, words)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        if options.verbose:
            traceback.print_exc()
            print(getattr(error, "details", ""), file=sys.stderr)
        return 1


def parse(words: list[str]) -> argparse.Namespace:
    """The command line; what `test`, `bench` and `make` do not know is passed on."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    if options.command == "bench" and rest[:1] in (["-h"], ["--help"]):
        options.print_help()  # after a NAME, --help is the benchmark's own
        parser.exit()
    if rest and options.command not in PASSES_ON:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dev.py", description="Qwen-Image 2 for ComfyUI, without a browser.", allow_abbrev=False
    )
    _add_common(parser, comfyui=None, verbose=False)
    # How the first run tells the second one, inside the environment, what the set-up has found out.
    parser.add_argument("--ready-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--setup-seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (purpose, add_arguments) in COMMANDS.items():
        # pytest and the benchmarks have their own --verbose, and benchmarks their own --help: those are passed on.
        command = commands.add_parser(
            name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".", add_help=name != "bench",
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.set_defaults(print_help=command.print_help)
        own_verbose = name in ("test", "bench")
        _add_common(command, comfyui=argparse.SUPPRESS, verbose=None if own_verbose else argparse.SUPPRESS)
        add_arguments(command)
    return parser


def _add_common(parser: argparse.ArgumentParser, comfyui: object, verbose: object) -> None:
    """Arguments that stand before or after the command's name; after it they have no default, to keep the former."""
    parser.add_argument(
        "--comfyui", type=Path, metavar="PATH", default=comfyui, help="use this ComfyUI (also: COMFYUI_PATH)"
    )
    if verbose is not None:
        parser.add_argument("--verbose", action="store_true", default=verbose, help="show the traceback of an error")


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=Path, metavar="DIR", help="folder with diffusion_models, text_encoders, vae")


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("poster.png"), metavar="FILE", help="a PNG file (poster.png)")


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number (1 to 65535)")
    return int(text)


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=_port, default=8188, help="8188 if not given")
    _add_models(parser)


RUN_HELP = """\
NODE is an id, a title or a class, with or without "(Qwen-Image 2)" and "QwenImage2": --set Sampler.seed=7.
A picture is a file of yours: --set LoadImage.image=photo.png. What is transparent in it is its mask, which edit_masked
needs: erase what the edit may change, and save a PNG with transparency. Nothing that is in --out is overwritten."""


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="API.json")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="change an input")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where pictures go (this folder)")
    _add_models(parser)
    parser.epilog = RUN_HELP


def _quantize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a transformer or text encoder, file or folder")
    parser.add_argument("--format", choices=("int8", "fp8", "4-bit"), default="int8", help="int8 if not given")
    parser.add_argument("--out", type=Path, metavar="FILE", help="NAME_FORMAT.safetensors in this folder if not given")


def _clean_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _test_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "dev.py test [pytest arguments]"


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "dev.py bench [NAME] [arguments of the benchmark]"
    there = "\n".join(f"  {name:<12}{purpose}" for name, purpose in benchmarks.present().items())
    parser.epilog = f"benchmarks ({benchmarks.DEFAULT} if none is named; bench NAME --help):\n{there}"


def _make_arguments(parser: argparse.ArgumentParser) -> None:
    if not repository.has("make"):
        return
    from ..generate import make
    parser.add_argument("target", choices=make.TARGETS, metavar="TARGET", help="one of those below")
    there = "\n".join(f"  {name} {more}".ljust(42) + writes for name, (_, writes, more) in make.TARGETS.items())
    parser.epilog = f"targets:\n{there}"


COMMANDS = {
    "demo": ("draw a poster and say what each stage took", _demo_arguments),
    "serve": ("ComfyUI with this pack, for a browser", _serve_arguments),
    "run": ("run a workflow in API format", _run_arguments),
    "render": ("run a workflow for each row of a table, here or on a Ray cluster", render_command.add_arguments),
    "test": ("run pytest with the further arguments", _test_arguments),
    "bench": ("run benchmarks/NAME.py with the further arguments", _bench_arguments),
    "make": ("write workflows, their pictures, help pages or translations from the code", _make_arguments),
    "quantize": ("make a smaller file of a checkpoint", _quantize_arguments),
    "clean": ("remove environments that are no longer used", _clean_arguments),
}
PASSES_ON = ("test", "bench", "make")


def dispatch(options: argparse.Namespace, words: list[str]) -> int:
    """Check what can be checked at once, get into the environment, and run the command there."""
    if options.command == "clean":
        return clean(options.yes)
    check(options)
    if options.ready_in is None:
        begin = time.monotonic()
        found = find_installation(options)
        if not environment.is_running_in(found):
            ready = ["--ready-in", str(found.comfyui), "--setup-seconds", f"{time.monotonic() - begin:.2f}"]
            return hand_over([str(found.python), str(DEV), *ready, *words])
        options.ready_in = found.comfyui
    return run_command(options)


def check(options: argparse.Namespace) -> None:
    """Find mistakes before the long work, which the set-up may be."""
    repository.require(options.command)
    if options.command == "demo":
        if options.out.suffix.lower() != ".png" or options.out.is_dir():
            raise UserError(f"--out {options.out}: the picture is a PNG file, name one that ends in .png.")
        output.require_writable(options.out.absolute().parent)
    elif options.command == "run":
        graph = workflow.apply(workflow.load(options.file), options.set)
        pictures.check(graph, workflow.changed(graph, options.set))
        output.require_writable(options.out)
    elif options.command == "render":
        render_command.check(options)
    elif options.command == "serve":
        require_free_port(options.port)
    elif options.command == "bench":
        benchmarks.chosen(options.rest)
    elif options.command == "make":
        from ..generate import make
        make.check(options.target, options.rest)
    elif options.command == "quantize":
        options.file, options.out = quantize_paths(options)
    if getattr(options, "models", None):
        options.models = models.given(options.models)


def quantize_paths(options: argparse.Namespace) -> tuple[Path, Path]:
    """The checkpoint and the file to make of it. Raises UserError where one is missing or the other is there."""
    file = options.file.absolute()
    if not file.exists():
        raise UserError(f"{options.file} does not exist.")
    out = (options.out or Path(f"{file.stem}_{options.format}.safetensors")).absolute()
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out.name}: name a file that ends in .safetensors.")
    if out.exists():
        raise UserError(f"{out} is there already: choose another --out.")
    output.require_writable(out.parent)
    return file, out


def require_room(file: Path, target: str, out: Path) -> None:
    """Refuse a disk that cannot take what will be made, by the header of the file. Needs the environment's packages."""
    from ...model.checkpoints import loading, quantization
    from ...model.checkpoints.errors import CheckpointError
    from ...model.checkpoints.files import open_checkpoint
    from ...model.language import key_maps
    from .quantize import FORMATS, text_encoder_in, transformer_in
    try:
        checkpoint = open_checkpoint(file)
        text = text_encoder_in(checkpoint)
        found = text or transformer_in(checkpoint)
    except CheckpointError as error:
        raise UserError(str(error)) from error
    shapes = {key_maps.COMFY.to(name) if text else name: shape for name, shape in found.shapes.items()}
    needed = quantization.saved_size(shapes, FORMATS[target], loading.stored_dtype(checkpoint.tensors).itemsize)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise UserError(f"The disk of {out.parent} has {free / 1e9:.1f} GB free, {out.name} needs about "
                        f"{needed / 1e9:.1f} GB: choose another --out.")


def find_installation(options: argparse.Namespace) -> Installation:
    """The ComfyUI that the person names, or the pack's own environment, which is set up if it is not there."""
    named = options.comfyui or os.environ.get("COMFYUI_PATH") or (
        options.command == "render" and environment.comfyui_around(ROOT))
    if named:
        return environment.existing(Path(named))
    return environment.ensure(environment.current_recipe(), installer.install, lambda text: print(text, flush=True))


def hand_over(command: list[str]) -> int:
    """Go on as another Python. Windows has no exec that keeps the process, there it becomes a child."""
    if os.name == "nt":
        return process.run_foreground(command)
    sys.stdout.flush()
    os.execv(command[0], command)


def run_command(options: argparse.Namespace) -> int:
    """Run the command; from here on the environment's packages can be imported."""
    try:
        from . import commands
    except ModuleNotFoundError as error:
        raise UserError(f"{sys.executable} has no {error.name}; run this with the Python that runs ComfyUI.") from error
    setup = commands.Setup(options.ready_in, options.setup_seconds)
    calls = {
        "demo": lambda: commands.demo(setup, options.out),
        "serve": lambda: commands.serve(setup, options.port, options.models),
        "run": lambda: commands.run(setup, options.file, options.set, options.models, options.out),
        "render": lambda: render_command.render(setup.comfyui, options),
        "quantize": lambda: (require_room(options.file, options.format, options.out)
                             or commands.quantize(setup, options.file, options.format, options.out)),
        "test": lambda: commands.test(setup, options.rest),
        "bench": lambda: commands.bench(setup, options.rest),
        "make": lambda: run_make(setup.comfyui, options.target, options.rest),
    }
    return calls[options.command]()


def run_make(comfyui: Path, target: str, arguments: list[str]) -> int:
    """Imported here, because the registry's archive has no tools/generate."""
    from ..generate import make
    return make.run(comfyui, target, arguments)


def clean(yes: bool) -> int:
    """List the environments with their sizes and remove those that this checkout does not use."""
    root, present = environment.environments_folder(), environment.current_recipe().name
    root.mkdir(parents=True, exist_ok=True)
    with environment.install_lock(root, print):
        folders = sorted(folder for folder in root.iterdir() if folder.is_dir())
        for folder in folders:
            size = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_symlink())
            print(f"{folder}  {size / 1e9:.1f} GB{'  (in use)' if folder.name == present else ''}")
        old = [folder for folder in folders if folder.name != present]
        if old and (yes or _agrees(f"Remove {len(old)} that are not in use?")):
            for folder in old:
                shutil.rmtree(folder)
            print(f"Removed {len(old)}.")
    return 0


def _agrees(question: str) -> bool:
    if not sys.stdin.isatty():
        print(f"{question} Repeat with --yes to do so.")
        return False
    print(f"{question} [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() == "y"  # the end of the input is no


def catch_signals() -> None:
    """Let every way of being asked to stop run the clean-up: `with` blocks end the server and remove its folder."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    # Set even where a shell has switched Ctrl-C off, as it does for background jobs of scripts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, stop)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, stop)
