"""LoRA and LyCORIS files: one spelling for the names that programs give the same tensors, and what of them is complete.

An adapter is some tensors for one matrix, `<module>.<part>`. Names are taken apart as text, never by a pattern: a file
may hold 50,000 of them, each as long as its writer likes.
"""
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...messages import Message, and_list, plural
from .finite import is_finite

ROOT = "diffusion_model."      # what ComfyUI's keys of a transformer begin with
FLAT = "lora_unet_"            # the same where the writer has no dots: kohya, musubi
# What writers put around the network: PEFT, torch.compile, DDP, diffusers, DiffSynth (pipe.dit), ComfyUI.
WRAPPERS = {"base_model", "model", "diffusion_model", "transformer", "pipe", "dit", "module", "_orig_mod", "unet"}
FLAT_PREFIXES = ("lora_transformer_", "lycoris_")  # OneTrainer, SimpleTuner
UP, DOWN, ALPHA, MAGNITUDE, RESHAPE = "lora_B.weight", "lora_A.weight", "alpha", "dora_scale", "reshape_weight"
# Other spellings of these two, and ends of names only: diffusers' oldest joins its own with an underscore.
ENDS = {".lora_up.weight": UP, ".lora.up.weight": UP, "_lora.up.weight": UP, ".lora_linear_layer.up.weight": UP,
        ".lora_B": UP, ".lora_down.weight": DOWN, ".lora.down.weight": DOWN, "_lora.down.weight": DOWN,
        ".lora_linear_layer.down.weight": DOWN, ".lora_A": DOWN}
# A bias is a parameter of its own: what is added to it is its difference.
BIAS = ".bias"
BIAS_ENDS = {".diff_b": f"{BIAS}.diff", ".b_norm": f"{BIAS}.diff"}
PEFT_MAGNITUDE = "lora_magnitude_vector"
PEFT_PARTS = {"lora_A": DOWN, "lora_B": UP, PEFT_MAGNITUDE: MAGNITUDE}

# The kinds of adapters: name -> alternatives, each all the parts that belong together.
FORMS: dict[str, tuple[frozenset[str], ...]] = {
    "LoRA": (frozenset({UP, DOWN}),),
    "LoHa": (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),),
    "LoKr": tuple(frozenset(first | second) for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
                  for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})),
    "GLoRA": (frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight"}),),
    "OFT": (frozenset({"oft_blocks"}),),
    "difference": (frozenset({"diff"}), frozenset({"w_norm"})),
    "replacement": (frozenset({"set_weight"}),),
}
# The end of a name by which a whole parameter is a replacement of the model's.
REPLACEMENT = "set_weight"
WHOLE_ENDS = {".weight": f".{REPLACEMENT}", BIAS: f"{BIAS}.{REPLACEMENT}"}
# The part of each kind that has as many rows as the adapter has ranks.
RANKED = {"LoRA": (DOWN,), "LoHa": ("hada_w1_b",), "LoKr": ("lokr_w2_b", "lokr_w1_b")}
WHOLE = {"difference", "replacement"}  # of the matrix itself, which take neither scale nor magnitude
# Parts that change what the others mean: without them the matrix would be a wrong one. They are for convolutions.
TUCKER = {"lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2"}
PARTS = {ALPHA, MAGNITUDE, RESHAPE, "rescale", *TUCKER,
         *(part for kinds in FORMS.values() for kind in kinds for part in kind)}


def one_spelling(name: str) -> str:
    """A tensor's name as ComfyUI's loader finds it: wrappers, prefixes and parts in one form."""
    name = _without_wrappers(name)
    for end, part in BIAS_ENDS.items():
        if name.endswith(end):
            return name.removesuffix(end) + part
    for end, part in ENDS.items():
        if name.endswith(end):
            return f"{name.removesuffix(end)}.{part}"
    return _without_adapter_name(name)


def _without_wrappers(name: str) -> str:
    for prefix in FLAT_PREFIXES:
        if name.startswith(prefix):
            return FLAT + name.removeprefix(prefix)
    if name.startswith(FLAT):
        return name
    words = name.split(".")
    first = next((position for position, word in enumerate(words) if word not in WRAPPERS), len(words))
    return ROOT + ".".join(words[first:])


def _without_adapter_name(name: str) -> str:
    """PEFT puts the adapter's name into each tensor's: .lora_A.default_0.weight."""
    words = name.rsplit(".", 3)
    for position, word in enumerate(words[1:], start=1):
        rest = words[position + 1:]
        if word in PEFT_PARTS and (rest[-1:] == ["weight"] or word == PEFT_MAGNITUDE):
            return ".".join([*words[:position], PEFT_PARTS[word]])
    return name


def taken_apart(name: str) -> tuple[str, str]:
    """A name in one spelling -> module and part; the part is empty where it is none."""
    for dots in (2, 1):
        module, *words = name.rsplit(".", dots)
        if ".".join(words) in PARTS:
            return module, ".".join(words)
    return name, ""


def as_replacements(names: Iterable[str]) -> dict[str, str]:
    """Names in one spelling, those of a file with adapters -> the same, in which a whole parameter beside them
    (PEFT's modules_to_save, the norms of VideoX-Fun's files) is a replacement of the model's."""
    names = list(names)
    if not any(taken_apart(name)[1] for name in names):
        return dict(zip(names, names, strict=True))  # no adapter is among them: a whole model
    return {name: _as_replacement(name) for name in names}


def _as_replacement(name: str) -> str:
    if not taken_apart(name)[1]:
        for end, part in WHOLE_ENDS.items():
            if name.endswith(end):
                return name.removesuffix(end) + part
    return name


@dataclass
class Adapter:
    """What a file brings for one matrix. kind: as in FORMS. parts: part -> tensor, those that are used."""

    module: str
    kind: str
    parts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def rank(self) -> int | None:
        """None: the kind has none, or its factors are whole matrices."""
        part = next((part for part in RANKED.get(self.kind, ()) if part in self.parts), None)
        return None if part is None or not self.parts[part].ndim else self.parts[part].shape[0]


def of_modules(state: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Tensors in one spelling, module by module: part -> tensor."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        module, part = taken_apart(name)
        if part:
            modules.setdefault(module, {})[part] = tensor
    yield from modules.items()


def complete(module: str, parts: Mapping[str, Tensor]) -> list[Adapter]:
    """The adapters of which nothing is missing: none where there are only halves; more than one contradict."""
    found = []
    for kind, alternatives in FORMS.items():
        own = next((own for own in alternatives if own <= parts.keys()), None)
        if own is not None:
            extra = set() if kind in WHOLE else {ALPHA, MAGNITUDE, RESHAPE, *TUCKER} & parts.keys()
            found.append(Adapter(module, kind, {part: parts[part] for part in sorted(own | extra)}))
    return found


def damaged(adapter: Adapter) -> str | None:
    """The first part that holds NaN or infinity."""
    return next((part for part, tensor in adapter.parts.items() if not is_finite(tensor)), None)


def in_words(used: Sequence[Adapter]) -> str:
    """Which kinds they are, for people: 'LoRA of rank 64 and 65 replaced weights'."""
    kinds: dict[str, list[Adapter]] = {}
    for adapter in used:
        kinds.setdefault("DoRA" if MAGNITUDE in adapter.parts else adapter.kind, []).append(adapter)
    return and_list([_kind_in_words(kind, kinds[kind]) for kind in ("DoRA", *FORMS) if kind in kinds])


def _kind_in_words(kind: str, found: Sequence[Adapter]) -> Message | str:
    if kind == "difference":
        return plural("adapter_differences", len(found), "{count} exact difference", "{count} exact differences")
    if kind == "replacement":
        return plural("adapter_replacements", len(found), "{count} replaced weight", "{count} replaced weights")
    ranks = sorted({adapter.rank for adapter in found if adapter.rank is not None})
    if not ranks:
        return kind
    if len(ranks) == 1:
        return Message("adapter_rank", "{kind} of rank {rank}", kind=kind, rank=ranks[0])
    return Message("adapter_ranks", "{kind} of ranks {least} to {most}", kind=kind, least=ranks[0], most=ranks[-1])
