"""The diffusion transformer of Qwen-Image 1.x: two streams, text and image, that attend to each other (MMDiT).

Written from the technical report (arXiv 2508.02324) and checked tensor by tensor against diffusers 0.42.1,
transformer_qwenimage.py. Module names are those of the diffusers checkpoint.

Shapes: B batch, T text tokens, N image tokens (of the target, then of each reference), S = T + N, D width, H heads,
C channels of a head, F frames (layers of a picture; one otherwise), h x w latents.
"""
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from ..runtime.apart import KeepsApart
from ..runtime.kernels import TORCH, Kernels
from ..runtime.key_weights import PLAIN, KeyWeights, ReferenceWeight, key_weights, weighted_attention
from ..runtime.offload import Streamer
from ..runtime.operations import Factory, ModuleList, Operations
from ..runtime.rope import image_positions, rotations, text_positions
from ..runtime.time_embedding import TIME_CHANNELS, timestep_embedding
from .modulation import PARTS, Modulation, ModulationTable, Rows
from .spec import TransformerSpec

KEPT_ROPES = 8  # of images and texts of different sizes: two branches of guidance, with and without references

Ropes = tuple[Tensor, Tensor]  # rotations of image and text, as the kernels want them
# attend(q, k, v) -> attended values; q, k, v (B, S, H, C) -> (B, S, H * C)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
# A block: image (B, N, D), text (B, T, D) -> the same after it. Around: calls it, and does what a host adds to it.
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Around = Callable[[int, Step, Tensor, Tensor], tuple[Tensor, Tensor]]
InTurn = Callable[[Iterable["Block"]], Iterator["Block"]]


@dataclass(frozen=True)
class Condition:
    """A prompt with its references.

    text: states of the text encoder (B or 1, T, C), of any dtype. visible: (B or 1, T) bool, False for padding; None:
    all is text. references: latents (B or 1, 16, h, w) on the transformer's scale. weights: how much of each the target
    looks at; none: all of all. Text and references see each other as ever.
    """

    text: Tensor
    visible: Tensor | None = None
    references: tuple[Tensor, ...] = ()
    weights: tuple[ReferenceWeight, ...] = ()


class TimeEmbedding(nn.Module):
    """Sigma (B,) -> embedding (B, D)."""

    def __init__(self, spec: TransformerSpec, ops: Operations, **factory: Unpack[Factory]):
        super().__init__()
        self.timestep_embedder = nn.ModuleDict({
            "linear_1": ops.Linear(TIME_CHANNELS, spec.dim, **factory),
            "linear_2": ops.Linear(spec.dim, spec.dim, **factory),
        })
        if spec.layered:  # its second row was meant for pictures without alpha; no pipeline asks for it
            self.addition_t_embedding = ops.Embedding(2, spec.dim, **factory)

    def forward(self, sigma: Tensor, like: Tensor) -> Tensor:
        """like: a tensor of the dtype to compute in."""
        mlp = self.timestep_embedder
        time = mlp["linear_2"](F.silu(mlp["linear_1"](timestep_embedding(sigma, like.dtype))))
        if hasattr(self, "addition_t_embedding"):
            first = torch.zeros(len(sigma), dtype=torch.long, device=sigma.device)
            time = time + self.addition_t_embedding(first).to(time)
        return time


class JointAttention(nn.Module):
    """Each stream has its own projections and norms; both attend to both."""

    def __init__(self, spec: TransformerSpec, ops: Operations, kernels: Kernels, **factory: Unpack[Factory]):
        super().__init__()
        inner = spec.heads * spec.head_dim
        self.heads = spec.heads
        self.kernels = kernels
        self.to_q, self.to_k, self.to_v = (ops.Linear(spec.dim, inner, **factory) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (ops.Linear(spec.dim, inner, **factory) for _ in range(3))
        self.norm_q, self.norm_k, self.norm_added_q, self.norm_added_k = (
            ops.RMSNorm(spec.head_dim, eps=spec.eps, **factory) for _ in range(4))
        self.to_out = ModuleList([ops.Linear(inner, spec.dim, **factory)])
        self.to_add_out = ops.Linear(inner, spec.dim, **factory)

    def forward(self, image: Tensor, text: Tensor, ropes: Ropes, attend: Attend,
                last: bool = False) -> tuple[Tensor, Tensor | None]:
        """image (B, N, D), text (B, T, D) -> what each has read. last: nothing asks for the text's."""
        image_qkv = self._project(image, (self.to_q, self.to_k, self.to_v), self.norm_q, self.norm_k, ropes[0])
        text_qkv = self._project(text, (self.add_q_proj, self.add_k_proj, self.add_v_proj), self.norm_added_q,
                                 self.norm_added_k, ropes[1])
        q, k, v = (torch.cat(both, dim=1) for both in zip(text_qkv, image_qkv, strict=True))  # (B, S, H, C)
        if last:
            return self.to_out[0](attend(image_qkv[0], k, v)), None
        del image_qkv, text_qkv
        read = attend(q, k, v)
        length = text.shape[1]
        return self.to_out[0](read[:, length:]), self.to_add_out(read[:, :length])

    def _project(self, x: Tensor, linears: Iterable[nn.Module], norm_q: nn.Module, norm_k: nn.Module,
                 rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)) for linear in linears)
        q, k = self.kernels.norm_rope(q, k, norm_q, norm_k, rope)
        return q, k, v


class MLP(nn.Module):
    def __init__(self, spec: TransformerSpec, ops: Operations, **factory: Unpack[Factory]):
        super().__init__()
        # The reference's names: what stands first there has GELU inside, and a dropout follows it.
        self.net = nn.Sequential(Projected(spec, ops, **factory), nn.Identity(),
                                 ops.Linear(spec.mlp_dim, spec.dim, **factory))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.net(x)
        return hidden


class Projected(nn.Module):
    def __init__(self, spec: TransformerSpec, ops: Operations, **factory: Unpack[Factory]):
        super().__init__()
        self.proj = ops.Linear(spec.dim, spec.mlp_dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class Block(KeepsApart):
    def __init__(self, spec: TransformerSpec, ops: Operations, kernels: Kernels, **factory: Unpack[Factory]):
        super().__init__()
        self.eps = spec.eps
        self.kernels = kernels
        of_image, of_text = (nn.Sequential(nn.SiLU(), ops.Linear(spec.dim, PARTS * spec.dim, **factory))
                             for _ in range(2))
        self.keep_apart(img_mod=of_image, txt_mod=of_text)
        self.modulation: tuple[nn.Sequential, nn.Sequential] = of_image, of_text
        self.attn = JointAttention(spec, ops, kernels, **factory)
        self.img_mlp = MLP(spec, ops, **factory)
        self.txt_mlp = MLP(spec, ops, **factory)

    def forward(self, image: Tensor, text: Tensor, of_image: Sequence[tuple[int, Modulation]], of_text: Modulation,
                ropes: Ropes, attend: Attend, last: bool = False) -> tuple[Tensor, Tensor]:
        """Each stream: x + gate * attention(norm(x) * (1 + scale) + shift), and the same with its MLP.

        of_image: lengths of parts of the image stream, with the modulation of each. last: the text stream ends here.
        """
        text_part = [(text.shape[1], of_text)]
        read_image, read_text = self.attn(
            self._normed(image, [(length, each.scale_attn, each.shift_attn) for length, each in of_image]),
            self._normed(text, [(length, each.scale_attn, each.shift_attn) for length, each in text_part]),
            ropes, attend, last)
        image = self._with_mlp(_gated(image, read_image, [(length, each.gate_attn) for length, each in of_image]),
                               self.img_mlp, of_image)
        if read_text is not None:
            text = self._with_mlp(_gated(text, read_text, [(length, each.gate_attn) for length, each in text_part]),
                                  self.txt_mlp, text_part)
        return image, text

    def _with_mlp(self, x: Tensor, mlp: MLP, parts: Sequence[tuple[int, Modulation]]) -> Tensor:
        normed = self._normed(x, [(length, each.scale_mlp, each.shift_mlp) for length, each in parts])
        x = _gated(x, mlp(normed), [(length, each.gate_mlp) for length, each in parts])
        # The streams outgrow fp16; the reference clips them to the largest finite value.
        return x.clip(-65504, 65504) if x.dtype == torch.float16 else x

    def _normed(self, x: Tensor, parts: Sequence[tuple[int, Tensor, Tensor]]) -> Tensor:
        norm = self.kernels.modulated_layer_norm
        pieces = [norm(piece, scale, shift, self.eps) for piece, (_, scale, shift)
                  in zip(x.split([part[0] for part in parts], dim=1), parts, strict=True)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _gated(x: Tensor, update: Tensor, gates: Sequence[tuple[int, Tensor]]) -> Tensor:
    """x + gate * update, (B, S, D), with a gate for each part of S."""
    lengths = [length for length, _ in gates]
    pieces = [torch.addcmul(one, gate, other) for one, other, (_, gate)
              in zip(x.split(lengths, dim=1), update.split(lengths, dim=1), gates, strict=True)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


class OutputNorm(nn.Module):
    def __init__(self, spec: TransformerSpec, ops: Operations, kernels: Kernels, **factory: Unpack[Factory]):
        super().__init__()
        self.eps = spec.eps
        self.kernels = kernels
        self.linear = ops.Linear(spec.dim, 2 * spec.dim, **factory)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.linear(F.silu(time)).unsqueeze(1).chunk(2, dim=-1)  # scale first, unlike in the blocks
        return self.kernels.modulated_layer_norm(x, scale, shift, self.eps)


class Transformer(nn.Module):
    """Predicts the velocity (noise minus image) of a latent.

        velocity = transformer(x, sigma, Condition(text, references=references))

    `ops` is a namespace with Linear, RMSNorm and Embedding (torch.nn, or a host's), `kernels` see runtime/kernels.py.
    """

    def __init__(self, spec: TransformerSpec, ops: Operations = nn, kernels: Kernels = TORCH,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        factory = Factory(device=device, dtype=dtype)
        self.spec = spec
        self.kernels = kernels
        self.time_text_embed = TimeEmbedding(spec, ops, **factory)
        self.txt_norm = ops.RMSNorm(spec.context_dim, eps=spec.eps, **factory)
        self.txt_in = ops.Linear(spec.context_dim, spec.dim, **factory)
        self.img_in = ops.Linear(spec.token_channels, spec.dim, **factory)
        self.transformer_blocks = ModuleList(Block(spec, ops, kernels, **factory) for _ in range(spec.layers))
        self.streamer: Streamer[Block] | None = None  # where not all blocks stay on the device
        self.norm_out = OutputNorm(spec, ops, kernels, **factory)
        self.proj_out = ops.Linear(spec.dim, spec.token_channels, **factory)
        self.modulations = ModulationTable(self.evaluate_modulation)
        self._ropes: dict[Hashable, Tensor] = {}

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition, attention: Callable[..., Tensor] | None = None,
                around: Around | None = None, in_turn: InTurn = iter) -> Tensor:
        """x: noisy latents (B, 16, F, h, w) on the transformer's scale, sides that are multiples of the patch; sigma
        (B,) in [0, 1] -> velocity like x. attention: instead of the kernels' own. in_turn: gives the blocks, where a
        host brings their weights."""
        spec = self.spec
        images = self._images(x, condition.references)
        tokens = torch.cat([patches(latent.to(x.dtype), spec.patch) for latent, _ in images], dim=1)
        image = self.img_in(tokens)                                                       # (B, N, D)
        text = self.txt_in(self.txt_norm(condition.text.to(x.dtype))).expand(len(x), -1, -1)  # (B, T, D)
        target = x[0, 0].numel() // spec.patch ** 2
        of_image, of_text = self._modulation(sigma, x, (target, image.shape[1] - target))
        ropes = self._ropes_of(images, text.shape[1], x.device)
        weights = self._key_weights(condition, text.shape[1], target).to(x.device) if condition.weights else PLAIN
        attend = _attending(attention or self.kernels.attention, condition.visible, image.shape[1], weights, target)
        for number, block in enumerate(self._blocks_in_turn(in_turn)):
            step = partial(block, of_image=[(length, rows.image(number)) for length, rows in of_image],
                           of_text=of_text.text(number), ropes=ropes, attend=attend, last=number == spec.layers - 1)
            image, text = step(image, text) if around is None else around(number, step, image, text)
        velocity = self.proj_out(self.norm_out(image[:, :target], self.time_text_embed(sigma, x)))
        return latents(velocity, x.shape, spec.patch)

    def evaluate_modulation(self, sigmas: Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
        """What the matrices of all blocks give for these sigmas: (layers, 2, 6, sigmas, D), in RAM."""
        time = self.time_text_embed(torch.tensor(sigmas, device=device), torch.empty(0, dtype=dtype))  # (sigmas, D)
        return torch.stack([
            torch.stack([matrix(time).unflatten(-1, (PARTS, -1)).transpose(0, 1).cpu()
                         for matrix in block.modulation])
            for block in self.transformer_blocks])

    def _blocks_in_turn(self, in_turn: InTurn = iter) -> Iterator[Block]:
        return in_turn(self.transformer_blocks) if self.streamer is None else self.streamer.iter_blocks()

    def _key_weights(self, condition: Condition, text: int, target: int) -> KeyWeights:
        """Of all keys: so many of text, so many of the target, then those of the references."""
        side = self.spec.patch
        of_references = (weight.of_tokens((latent.shape[-2] // side, latent.shape[-1] // side))
                         for weight, latent in zip(condition.weights, condition.references, strict=True))
        return key_weights(torch.cat([torch.ones(text + target), *of_references]))

    def _modulation(self, sigma: Tensor, x: Tensor, lengths: tuple[int, int]) -> tuple[list[tuple[int, Rows]], Rows]:
        """The rows of each part of the image stream, and the text's. lengths: of the target and of all references."""
        rows = self.modulations.rows(sigma.tolist(), x.device, x.dtype)
        if self.spec.zero_cond_t and lengths[1]:
            return [(lengths[0], rows), (lengths[1], self.modulations.rows([0.0], x.device, x.dtype))], rows
        return [(sum(lengths), rows)], rows

    def _images(self, x: Tensor, references: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
        """The frames of the target and the references, (B, 16, h, w) with the position of each on the frame axis."""
        frames = list(enumerate(x.unbind(2)))
        after = range(len(frames), len(frames) + len(references))
        placed = [(-1 if self.spec.layered else frame, latent.expand(len(x), -1, -1, -1))
                  for frame, latent in zip(after, references, strict=True)]
        return [(latent, frame) for frame, latent in (*frames, *placed)]

    def _ropes_of(self, images: Sequence[tuple[Tensor, int]], text: int, device: torch.device) -> Ropes:
        """Rotations of image and text, kept from call to call. Text goes on where the widest image ends."""
        grids = tuple((frame, *(side // self.spec.patch for side in latent.shape[-2:])) for latent, frame in images)
        start = max(max(height // 2, width // 2) for _, height, width in grids)
        if self.spec.layered:
            start = max(start, sum(frame >= 0 for frame, _, _ in grids))
        return (self._rope((grids, device), lambda: torch.cat([image_positions(*grid) for grid in grids])),
                self._rope((start, text, device), lambda: text_positions(start, text)))

    def _rope(self, key: tuple, positions: Callable[[], Tensor]) -> Tensor:
        if key not in self._ropes:
            if len(self._ropes) >= KEPT_ROPES:
                self._ropes.clear()
            table = rotations(positions(), self.spec.rope_axes, self.spec.rope_theta)
            self._ropes[key] = self.kernels.prepare_rotations(table).to(key[-1])
        return self._ropes[key]


def patches(latent: Tensor, side: int) -> Tensor:
    """(B, C, h, w) -> tokens (B, h * w / side^2, C * side^2), the channels of a token in the order C, row, column."""
    tokens = latent.unflatten(-1, (-1, side)).unflatten(-3, (-1, side))  # (B, C, h / side, side, w / side, side)
    return tokens.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def latents(tokens: Tensor, shape: torch.Size, side: int) -> Tensor:
    """The way back, to (B, C, F, h, w)."""
    batch, channels, frames, height, width = shape
    grid = tokens.view(batch, frames, height // side, width // side, channels, side, side)
    return grid.permute(0, 4, 1, 2, 5, 3, 6).reshape(shape)


def _attending(attention: Callable[..., Tensor], visible: Tensor | None, images: int, weights: KeyWeights,
               target: int) -> Attend:
    """All tokens see all, but for the padding of prompts of unequal length, and what weights take from the target: the
    first so many of the images' tokens."""
    everything = looking = attention
    if visible is not None and not bool(visible.all()):
        keys = F.pad(visible.bool(), (0, images), value=True)  # (B, S): text comes first
        everything, looking = partial(attention, visible=keys), partial(attention, visible=weights.choose(keys))
    if weights.plain:
        return everything

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        text = q.shape[1] - images  # none in the last block
        queries = q.split([text, target, images - target], dim=1)
        read = weighted_attention(looking, queries[1], weights.choose(k), weights.choose(v), weights.factors)
        before, after = (everything(each, k, v) if each.shape[1] else read[:, :0] for each in queries[::2])
        return torch.cat([before, read, after], dim=1)
    return attend
