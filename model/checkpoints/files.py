"""Checkpoint files and folders, safetensors and GGUF: names, shapes and dtypes without reading a tensor, then
memory-mapped tensors."""
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...messages import Message, Refusal, reason
from . import gguf

SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors$")
INDEX = ".safetensors.index.json"
# No model file begins so: of both formats the first bytes hold a small number, and with it zeros.
TEXT = re.compile(rb"(\xef\xbb\xbf)?[\t\r\n -~]{12}")


class CheckpointError(Refusal):
    """A file that cannot be used. The message is one sentence for the user: which file, what it is, what to do."""


def missing_tensor(file: str, tensor: str) -> CheckpointError:
    return CheckpointError("tensor_missing", "{file} is incomplete: the tensor {tensor} is missing.", file=file,
                           tensor=tensor)


def invalid_shape(file: str, tensor: str, shape: tuple[int, ...]) -> CheckpointError:
    return CheckpointError("tensor_shape_invalid", "In {file} the tensor {tensor} has the impossible shape {shape}.",
                           file=file, tensor=tensor, shape=str(list(shape)))


class TensorInfo(NamedTuple):
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: F32, BF16, F16, I8, ...; of a GGUF file's packed matrix: Q8_0, Q4_K, ...


@dataclass(frozen=True)
class CheckpointFiles:
    """One checkpoint, in one file or several.

    label: the name that messages use. config: the folder's config.json or the one in the file's metadata, or {}.
    """

    label: str
    tensors: dict[str, TensorInfo]
    homes: dict[str, Path]  # tensor name -> file
    metadata: dict[str, str]
    config: dict

    def read(self, name: str) -> Tensor:
        """The tensor, mapped from its file on its own: its pages are read when touched and gone with it."""
        with safe_open(self.homes[name], "pt") as file:
            return aligned(file.get_tensor(name))

    @contextmanager
    def mapped(self) -> Iterator[Callable[[str], Tensor]]:
        """Yields a function like `read` whose tensors share one mapping of each file, alive as long as one of them."""
        with ExitStack() as stack:
            opened = {path: stack.enter_context(safe_open(path, "pt")) for path in dict.fromkeys(self.homes.values())}
            yield _copying_once(lambda name: opened[self.homes[name]].get_tensor(name))


@dataclass(frozen=True)
class GGUFFile(CheckpointFiles):
    """A GGUF file. A packed matrix has the shape of what it stands for; it is read as rows of bytes.

    header: its metadata, which publishers of diffusion models often leave out.
    """

    stored: dict[str, gguf.Stored] = field(default_factory=dict)
    header: dict[str, object] = field(default_factory=dict)

    def read(self, name: str) -> Tensor:
        return aligned(self.stored[name].data)

    @contextmanager
    def mapped(self) -> Iterator[Callable[[str], Tensor]]:
        yield _copying_once(lambda name: self.stored[name].data)


def aligned(tensor: Tensor) -> Tensor:
    """The mapped tensor itself, or its copy where it lies at an address that is no multiple of its element.

    Nothing stops a file's writer from that: a text of odd length before the weights is enough. Kernels choose their way
    by the address, so the same weights would compute otherwise than at home, and some devices read no such element.
    """
    return tensor if _is_aligned(tensor) else tensor.clone()


def _is_aligned(tensor: Tensor) -> bool:
    return tensor.data_ptr() % tensor.element_size() == 0


def _copying_once(read: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
    """`read`, whose tensors are aligned; two parameters that are rows of one tensor share its copy."""
    copies: dict[str, Tensor] = {}

    def read_aligned(name: str) -> Tensor:
        if name in copies:
            return copies[name]
        tensor = read(name)
        if not _is_aligned(tensor):
            tensor = copies[name] = tensor.clone()
        return tensor
    return read_aligned


def open_checkpoint(path: str | Path, label: str | None = None) -> CheckpointFiles:
    """Open a .safetensors or .gguf file, one shard of a set, or a folder as diffusers and transformers write them.

    A config.json beside a file is read where that file is the only one in its folder.
    Raises CheckpointError for what is missing, not readable, truncated or of another format.
    """
    path = Path(path)
    try:
        return _open(path, label or path.name)
    except OSError as error:
        name = Path(error.filename or path).name
        raise CheckpointError("file_unreadable", "{file} cannot be read ({reason}): see that you may read it, that no "
                              "other program keeps it, and that its disk or network share is there.", file=name,
                              reason=str(error.strerror or error)) from error


def _open(path: Path, label: str) -> CheckpointFiles:
    if path.is_dir():
        return _open_files(_files_of_folder(path, label), label, _read_config(path / "config.json", label))
    if shard := SHARD.match(path.name):
        files = _numbered_shards(path.parent, shard["stem"], int(shard["count"]), label)
        return _open_files(files, label, _read_config(path.parent / "config.json", label))
    if path.suffix.lower() == ".gguf":
        return _open_gguf(path, label)
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError("file_format", "{file} is neither a .safetensors nor a .gguf file: the pack reads no "
                              "other format.", file=label)
    alone = len(list(path.parent.glob("*.safetensors"))) == 1
    return _open_files([path], label, _read_config(path.parent / "config.json", label) if alone else {})


def _files_of_folder(folder: Path, label: str) -> list[Path]:
    indexes = sorted(folder.glob("*" + INDEX))
    if len(indexes) > 1:
        raise CheckpointError("folder_several", "The folder {folder} holds several checkpoints ({first}, {second}): "
                              "keep one of them.", folder=label, first=indexes[0].name, second=indexes[1].name)
    if indexes:
        return _present([folder / name for name in _indexed_files(indexes[0], label)], label)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError("folder_empty", "The folder {folder} holds no .safetensors file.", folder=label)
    if shard := SHARD.match(files[0].name):
        return _numbered_shards(folder, shard["stem"], int(shard["count"]), label)
    if len(files) > 1:
        raise CheckpointError("folder_no_index", "The folder {folder} holds {count} .safetensors files ({first}, "
                              "{second}, ...) and no index: choose one of them.", folder=label, count=len(files),
                              first=files[0].name, second=files[1].name)
    return files


def _indexed_files(index: Path, label: str) -> list[str]:
    """File names in an index, without any folder: it may only name its neighbours."""
    weight_map = _read_json(index, label).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("index_invalid", "{index} in {folder} is not an index of tensors: download it again.",
                              index=index.name, folder=label)
    return sorted({Path(str(name)).name for name in weight_map.values()})


def _numbered_shards(folder: Path, stem: str, count: int, label: str) -> list[Path]:
    return _present([folder / f"{stem}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)], label)


def _present(files: list[Path], label: str) -> list[Path]:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError("shards_missing", "{file} is incomplete: {missing} is missing from its folder ({count} "
                              "files belong together).", file=label, missing=", ".join(missing), count=len(files))
    return files


def _open_files(files: list[Path], label: str, config: dict) -> CheckpointFiles:
    tensors, homes, metadata = {}, {}, {}
    for path in files:
        with _safe_open(path) as file:
            metadata.update(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                part = file.get_slice(name)
                tensors[name] = TensorInfo(tuple(part.get_shape()), part.get_dtype())
                homes[name] = path
    return CheckpointFiles(label, tensors, homes, metadata, config or _config_of_metadata(metadata, label))


def _missing_file(path: Path) -> CheckpointError:
    return CheckpointError("file_missing", "{file} does not exist.", file=path.name)


def _safe_open(path: Path):
    try:
        path.open("rb").close()  # safetensors says of every file that it cannot open that it does not exist
        return safe_open(path, "pt")
    except FileNotFoundError:
        raise _missing_file(path) from None
    except SafetensorError as error:
        check_is_no_text(path)
        size = path.stat().st_size
        raise CheckpointError("safetensors_damaged", "{file} ({size} bytes) is truncated or damaged, download it again "
                              "({error}).", file=path.name, size=f"{size:,}", error=str(error)) from error


def check_is_no_text(path: Path) -> None:
    """Raises CheckpointError for what a download without Git LFS, or a refused one, saves under a file's name."""
    with path.open("rb") as file:
        begin = file.read(80)
    if begin.startswith(b"version https://git-lfs"):
        raise CheckpointError("lfs_pointer", "{file} is a Git LFS pointer, not the file itself: run  git lfs pull  in "
                              "its folder, or download the file from its web page.", file=path.name)
    if TEXT.match(begin):
        raise CheckpointError("web_page", "{file} is a web page or an error message, saved under the file's name: it "
                              "begins with {beginning}. Download it again, logged in if its web page asks for that.",
                              file=path.name, beginning=repr(begin[:40].decode("utf-8", "replace").strip()))


def _open_gguf(path: Path, label: str) -> GGUFFile:
    try:
        header, stored = gguf.read(path)
    except ImportError as error:
        raise CheckpointError("gguf_package", "{file} is a GGUF file, which needs the gguf package: run  pip install "
                              "gguf  in ComfyUI's Python.", file=label) from error
    except FileNotFoundError:
        raise _missing_file(path) from None
    except ValueError as error:
        check_is_no_text(path)
        raise CheckpointError("gguf_damaged", "{file} ({size} bytes) is truncated, damaged or no GGUF file, download "
                              "it again ({error}).", file=path.name, size=f"{path.stat().st_size:,}",
                              error=reason(error)) from error
    tensors = {name: TensorInfo(one.shape, one.kind) for name, one in stored.items()}
    return GGUFFile(label, tensors, dict.fromkeys(stored, path), {}, {}, stored, header)


def _config_of_metadata(metadata: dict[str, str], label: str) -> dict:
    if "config" not in metadata:
        return {}
    return _as_dict(metadata["config"], Message("config_inside", "The configuration inside {file}", file=label))


def _read_config(path: Path, label: str) -> dict:
    return _read_json(path, label) if path.is_file() else {}


def _read_json(path: Path, label: str) -> dict:
    return _as_dict(path.read_bytes(), Message("config_file", "The file {file} of {folder}", file=path.name,
                                               folder=label))


def _as_dict(text: str | bytes, what: str) -> dict:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError("json_invalid", "{source} is not valid JSON ({error}).", source=what,
                              error=str(error)) from error
    if not isinstance(content, dict):
        raise CheckpointError("json_no_entries", "{source} holds no named entries ({example}): download it again.",
                              source=what, example="{...}")
    return content
