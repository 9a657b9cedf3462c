"""GGUF's packed matrices in ComfyUI's quantized layers: they stay packed, and are dequantized as they are used."""
import json
from dataclasses import dataclass

import comfy.ops
import torch
from comfy.quant_ops import QuantizedLayout, QuantizedTensor, register_layout_class
from torch import Tensor, nn

from ....model.checkpoints import gguf, quantization
from ....model.runtime.triton.checked import Checked
from .formats import STATE_DICT_ONLY

LAYOUT = "QwenImage2GGUF"

# The types that fill published files (Q8_0, Q6_K and the K mixtures); of the others a file has a few tensors.
WITH_KERNEL = ("Q8_0", "Q6_K", "Q5_K", "Q4_K")


def plain_decode(packed: Tensor, type_name: str, dtype: torch.dtype) -> Tensor:
    return gguf.dequantize(packed, type_name).to(dtype)


def triton_decode():
    from ....model.runtime.triton.gguf import decode
    return decode


def few_blocks(packed: Tensor, type_name: str, dtype: torch.dtype) -> tuple[Tensor, str, torch.dtype]:
    """Three rows of random blocks on the same device, whose scales are fp16 numbers from 0.25 to 4."""
    block, generator = gguf.BLOCKS[type_name], torch.Generator().manual_seed(1)
    data = torch.randint(256, (3 * 5, block.bytes), generator=generator, dtype=torch.uint8)
    for place in block.halves:
        data[:, place + 1] = data[:, place + 1] % 16 + 52
    return data.view(3, -1).to(packed.device), type_name, dtype


decode_in_one_pass = Checked("GGUF weights are dequantized", plain_decode, triton_decode, few_blocks)


def decode(packed: Tensor, type_name: str, dtype: torch.dtype) -> Tensor:
    """Rows of packed blocks (rows, bytes) uint8 -> the matrix (rows, columns) in this dtype."""
    return (decode_in_one_pass if type_name in WITH_KERNEL else plain_decode)(packed, type_name, dtype)


class BlockLayout(QuantizedLayout):
    """Rows of packed blocks. A LoRA that is merged into a matrix leaves it as Q8_0, the finest of ggml's types."""

    @dataclass(frozen=True)
    class Params:
        orig_dtype: torch.dtype
        orig_shape: tuple[int, ...]
        type: str
        scale: None = None  # in the blocks; ComfyUI asks for one

        def _tensor_fields(self) -> list[str]:
            return []

        def to_device(self, device):
            return self

        def clone(self):
            return self

        def copy_from(self, src, non_blocking=False):
            object.__setattr__(self, "type", src.type)

    @classmethod
    def quantize(cls, tensor: Tensor, **kwargs):
        return gguf.quantize(tensor), cls.Params(tensor.dtype, tuple(tensor.shape), "Q8_0")

    @classmethod
    def dequantize(cls, qdata: Tensor, params) -> Tensor:
        return decode(qdata, params.type, params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor):
        return (qtensor._qdata,)

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params) -> dict[str, Tensor]:
        return {"": qdata}


register_layout_class(LAYOUT, BlockLayout)


def is_packed(module: nn.Module) -> bool:
    """Whether its matrix is GGUF's blocks."""
    return getattr(module, "layout_type", None) == LAYOUT


def gguf_operations(core, dtype: torch.dtype | None = None):
    """ComfyUI's mixed-precision operations, whose linear layers and embeddings take packed matrices as well.

    dtype: what a matrix is decoded to, else what the layer computes in.
    """

    def load_packed(layer: nn.Module, state_dict: dict, prefix: str, shape: tuple[int, int], decoded: torch.dtype):
        """Take the packed weight of a layer, if it has one, and give its name."""
        record = state_dict.get(prefix + quantization.QUANT_RECORD.removeprefix("."))
        how = json.loads(record.numpy().tobytes()) if record is not None else {}
        if how.get("format") != "gguf":
            return None
        del state_dict[prefix + quantization.QUANT_RECORD.removeprefix(".")]
        params = BlockLayout.Params(dtype or decoded, shape, how["type"])
        layer.quant_format, layer.layout_type = "gguf", LAYOUT
        layer.weight = nn.Parameter(QuantizedTensor(state_dict.pop(prefix + "weight"), LAYOUT, params),
                                    requires_grad=False)
        return prefix + "weight"

    class Operations(core):
        class Linear(core.Linear):
            weight_scale = comfy_quant = STATE_DICT_ONLY

            def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, *lists):
                name = load_packed(self, state_dict, prefix, self._orig_shape, self.factory_kwargs["dtype"])
                if name is None:
                    super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *lists)
                    return
                self._full_precision_mm = True
                # The bias, as torch loads it.
                nn.Module._load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, *lists)
                missing.remove(name)

        class Embedding(core.Embedding):
            """Looks packed rows up and decodes those."""

            weight_scale = comfy_quant = STATE_DICT_ONLY

            # Core's embeddings have neither, and a LoRA on a quantized one would have no effect.
            convert_weight, set_weight = core.Linear.convert_weight, core.Linear.set_weight

            def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, *lists):
                shape = (self.num_embeddings, self.embedding_dim)
                if load_packed(self, state_dict, prefix, shape, core._compute_dtype) is None:
                    super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *lists)

            def forward_comfy_cast_weights(self, input, out_dtype=None):
                # With a LoRA the whole table is decoded, by core.
                if getattr(self, "quant_format", None) != "gguf" or self.weight_function:
                    return super().forward_comfy_cast_weights(input, out_dtype)
                dtype = self.weight.dtype
                weight, _, stream = comfy.ops.cast_bias_weight(self, device=input.device, dtype=dtype, offloadable=True)
                if isinstance(weight, QuantizedTensor):
                    values = decode(weight._qdata[input.flatten()], weight._params.type, out_dtype or dtype)
                else:
                    values = weight[input.flatten()]
                comfy.ops.uncast_bias_weight(self, weight, None, stream)
                return values.view(*input.shape, self.embedding_dim).to(out_dtype or dtype)

    return Operations
