"""Opens checkpoint files and folders, safetensors and GGUF, without reading a tensor."""
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ...messages import Message, reason
from . import gguf, quantization
from .checkpoint import GGUFCheckpoint, StoredCheckpoint, TensorInfo
from .errors import CheckpointError

SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors$")
INDEX = ".safetensors.index.json"
# ComfyUI's newer versions write it beside an attention layer: JSON that names kernels to prefer there. It is no weight,
# and says nothing of what is computed; the pack's attention is the one that ComfyUI was started with, or a node's.
ATTENTION_PREFERENCE = ".comfy_attention.config"
# What sizes cannot tell of a network, JSON as bytes, beside the weights that core's save nodes write: they take no
# metadata from a model. Of any prefix.
SAVED_CONFIG = "qwen_image_2_config"
# Bounds that no real file comes near, for those that were made to take long: the largest transformers have some 5,000
# tensors of at most 5 axes, and a header of 1 MB; with the notes that trainers write into it, a few.
MAX_TENSORS, MAX_AXES, MAX_HEADER_BYTES = 100_000, 8, 32 * 1024**2
MAX_JSON_BYTES = 16 * 1024**2  # an index names every tensor, in a hundred bytes each
MAX_NAME_LENGTH = 80  # characters of a tensor's name in a message
# No model file begins so: of both formats the first bytes hold a small number, and with it zeros.
TEXT = re.compile(rb"(\xef\xbb\xbf)?[\t\r\n -~]{12}")


def open_checkpoint(path: str | Path, label: str | None = None) -> StoredCheckpoint:
    """Open a .safetensors or .gguf file, one shard of a set, or a folder as diffusers and transformers write them.

    A config.json beside a file is read where that file is the only one in its folder.
    Raises CheckpointError for what is missing, not readable, truncated or of another format, and for records of
    quantized layers that cannot be read.
    """
    path = Path(path)
    with readable(path):
        opened = _open(path, label or path.name)
        return opened.with_quantization({**opened.quantization, **quantization.read_records(opened)})


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Around what reads a file: the system's error says in one sentence which file it was, without its folder."""
    try:
        yield
    except OSError as error:
        name = Path(error.filename or path).name
        raise CheckpointError("file_unreadable", "{file} cannot be read ({reason}). Check its permissions, whether "
                              "another program locks it, and whether its disk or network share is available.",
                              file=name,
                              reason=str(error.strerror or error)) from error


def _open(path: Path, label: str) -> StoredCheckpoint:
    if path.is_dir():
        return _open_files(_files_of_folder(path, label), label, _read_config(path / "config.json", label))
    if shard := SHARD.match(path.name):
        files = _numbered_shards(path.parent, shard["stem"], int(shard["count"]), label)
        return _open_files(files, label, _read_config(path.parent / "config.json", label))
    if path.suffix.lower() == ".gguf":
        return _open_gguf(path, label)
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError("file_format", "{file} is neither a .safetensors nor a .gguf file. No other format is "
                              "supported.", file=label)
    alone = len(list(regular_files(path.parent, "*.safetensors"))) == 1
    return _open_files([path], label, _read_config(path.parent / "config.json", label) if alone else {})


def _files_of_folder(folder: Path, label: str) -> list[Path]:
    indexes = sorted(regular_files(folder, "*" + INDEX))
    if len(indexes) > 1:
        raise CheckpointError("folder_several", "The folder {folder} contains several checkpoints ({first}, {second}). "
                              "Keep one of them.", folder=label, first=indexes[0].name, second=indexes[1].name)
    if indexes:
        return _present(folder, _indexed_files(indexes[0], label), label)
    files = sorted(regular_files(folder, "*.safetensors"))
    if not files:
        raise CheckpointError("folder_empty", "The folder {folder} contains no .safetensors file.", folder=label)
    if shard := SHARD.match(files[0].name):
        return _numbered_shards(folder, shard["stem"], int(shard["count"]), label)
    if len(files) > 1:
        raise CheckpointError("folder_no_index", "The folder {folder} contains {count} .safetensors files ({first}, "
                              "{second}, ...) but no index. Choose one of the files.", folder=label, count=len(files),
                              first=files[0].name, second=files[1].name)
    return files


def _indexed_files(index: Path, label: str) -> list[str]:
    """File names in an index, without any folder: it may only name its neighbours."""
    weight_map = _read_json(index, label).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("index_invalid", "{index} in {folder} is not a valid tensor index. Download it again.",
                              index=index.name, folder=label)
    return sorted({Path(str(name)).name for name in weight_map.values()})


def _numbered_shards(folder: Path, stem: str, count: int, label: str) -> list[Path]:
    return _present(folder, [f"{stem}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)], label)


def _present(folder: Path, names: list[str], label: str) -> list[Path]:
    """The files of these names. The folder is read once: a name may say that it is one of 99,999 files, and on a
    network share to look for each would take minutes."""
    wanted = {os.path.normcase(name) for name in names}
    with os.scandir(folder) as entries:
        there = {name for entry in entries if (name := os.path.normcase(entry.name)) in wanted and entry.is_file()}
    if missing := [name for name in names if os.path.normcase(name) not in there]:
        raise CheckpointError("shards_missing", "{file} is incomplete: {missing} is missing from its folder ({count} "
                              "files belong together).", file=label, missing=missing, count=len(names))
    return [folder / name for name in names]


def _open_files(files: list[Path], label: str, config: dict) -> StoredCheckpoint:
    tensors: dict[str, TensorInfo] = {}
    homes: dict[str, Path] = {}
    metadata: dict[str, str] = {}
    saved: dict[str, object] = {}
    for path in files:
        with _safe_open(path) as file:
            metadata.update(file.metadata() or {})
            found = tensor_infos(file, label, MAX_TENSORS)
            tensors |= found
            homes |= dict.fromkeys(found, path)
            saved |= _saved_config(file, label)
    return StoredCheckpoint(label, tensors, config or _config_inside(metadata, label) | saved, {}, homes, metadata)


def tensor_infos(file: safe_open, label: str, most: int) -> dict[str, TensorInfo]:
    """Of an opened safetensors file. Raises CheckpointError for more than `most` tensors, or more axes than any has."""
    names = list(file.keys())
    if len(names) > most:
        raise CheckpointError("tensors_many", "{file} has {count} tensors; the maximum is {max}. It is another kind of "
                              "file, or damaged.", file=label, count=f"{len(names):,}", max=f"{most:,}")
    found = {}
    for name in names:
        if name.endswith((ATTENTION_PREFERENCE, SAVED_CONFIG)):
            continue
        part = file.get_slice(name)
        found[name] = TensorInfo(tuple(part.get_shape()), part.get_dtype())
        if len(found[name].shape) > MAX_AXES:
            raise CheckpointError("tensor_axes", "{file} is damaged: tensor {tensor} has {count} axes; the maximum is "
                                  "{max}.", file=label, tensor=name[:MAX_NAME_LENGTH],
                                  count=f"{len(found[name].shape):,}", max=MAX_AXES)
    return found


def _missing_file(path: Path) -> CheckpointError:
    return CheckpointError("file_missing", "{file} does not exist.", file=path.name)


def regular_files(folder: Path, pattern: str) -> Iterator[Path]:
    """Without folders, and without pipes, sockets and devices: to open one of those may wait for ever."""
    return (path for path in folder.glob(pattern) if path.is_file())


def check_is_regular(path: Path) -> None:
    """Raises CheckpointError for what is there, and regular_files would leave out."""
    if not path.is_file() and path.exists():
        raise CheckpointError("not_regular", "{file} is not a regular file but a folder, pipe, socket or device.",
                              file=path.name)


def check_header(path: Path) -> None:
    """Raises CheckpointError for a safetensors header of a size that takes long to read, OSError for what cannot be
    opened."""
    check_is_regular(path)
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if MAX_HEADER_BYTES < size < path.stat().st_size:  # of a larger one safetensors itself says that it is damaged
        raise CheckpointError("safetensors_header", "{file} is damaged: its header of {size} bytes exceeds {max}.",
                              file=path.name, size=f"{size:,}",
                              max=f"{MAX_HEADER_BYTES:,}")


def _safe_open(path: Path) -> safe_open:
    try:
        check_header(path)  # first, because safetensors says of every file that it cannot open that it does not exist
        return safe_open(path, "pt")
    except FileNotFoundError:
        raise _missing_file(path) from None
    except SafetensorError as error:
        check_is_no_text(path)
        size = path.stat().st_size
        raise CheckpointError("safetensors_damaged", "{file} ({size} bytes) is truncated or damaged ({error}). "
                              "Download it again.", file=path.name, size=f"{size:,}", error=str(error)) from error


def check_is_no_text(path: Path) -> None:
    """Raises CheckpointError for what a download without Git LFS, or a refused one, saves under a file's name."""
    with path.open("rb") as file:
        begin = file.read(80)
    if begin.startswith(b"version https://git-lfs"):
        raise CheckpointError("lfs_pointer", "{file} is a Git LFS pointer, not the file itself. Run  git lfs pull  in "
                              "its folder, or download the file from its web page.", file=path.name)
    if TEXT.match(begin):
        raise CheckpointError("web_page", "{file} is a web page or an error message saved under the file's name; it "
                              "starts with {beginning}. Download it again, logged in if its web page asks for that.",
                              file=path.name, beginning=repr(begin[:40].decode("utf-8", "replace").strip()))


def _open_gguf(path: Path, label: str) -> GGUFCheckpoint:
    check_is_regular(path)
    try:
        header, stored = gguf.read(path)
    except FileNotFoundError:
        raise _missing_file(path) from None
    except ValueError as error:
        check_is_no_text(path)
        raise CheckpointError("gguf_damaged", "{file} ({size} bytes) is truncated, damaged or not a GGUF file "
                              "({error}). Download it again.", file=path.name, size=f"{path.stat().st_size:,}",
                              error=reason(error)) from error
    return GGUFCheckpoint.of(label, stored, header, homes=dict.fromkeys(stored, path))


def _config_inside(metadata: dict[str, str], label: str) -> dict:
    return _as_dict(metadata["config"], _inside(label)) if "config" in metadata else {}


def _saved_config(file: safe_open, label: str) -> dict:
    """What the networks in an opened safetensors file say of themselves, all together: their entries differ."""
    config: dict[str, object] = {}
    for name in (name for name in list(file.keys()) if name.endswith(SAVED_CONFIG)):
        part = file.get_slice(name)
        if part.get_dtype() != "U8" or math.prod(part.get_shape()) > MAX_JSON_BYTES:
            raise CheckpointError("config_tensor", "{file}: tensor {tensor} is not a valid configuration (at most "
                                  "{max} bytes). Save the file again.", file=label, tensor=name[-MAX_NAME_LENGTH:],
                                  max=f"{MAX_JSON_BYTES:,}")
        config |= _as_dict(file.get_tensor(name).numpy().tobytes(), _inside(label))
    return config


def _inside(label: str) -> Message:
    return Message("config_inside", "The configuration inside {file}", file=label)


def _read_config(path: Path, label: str) -> dict:
    return _read_json(path, label) if path.is_file() else {}


def _read_json(path: Path, label: str) -> dict:
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise CheckpointError("json_large", "{file} in {folder} has {size} bytes; a configuration or an index has at "
                              "most {max}. Download it again.", file=path.name, folder=label,
                              size=f"{size:,}", max=f"{MAX_JSON_BYTES:,}")
    return _as_dict(path.read_bytes(), Message("config_file", "The file {file} of {folder}", file=path.name,
                                               folder=label))


def _as_dict(text: str | bytes, what: str) -> dict:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError("json_invalid", "{source} is not valid JSON ({error}).", source=what,
                              error=str(error)) from error
    if not isinstance(content, dict):
        raise CheckpointError("json_no_entries", "{source} contains no named entries ({example}). Download it again.",
                              source=what, example="{...}")
    return content
