"""GGUF's packed matrices in ComfyUI's quantised layers: they stay packed, and are dequantised as they are used."""
import json
from dataclasses import dataclass

import torch
from comfy.quant_ops import QuantizedLayout, QuantizedTensor, register_layout_class
from torch import Tensor, nn

from ...model import ggml, quantised

LAYOUT = "QwenImage2GGUF"


class BlockLayout(QuantizedLayout):
    """Rows of packed blocks. A LoRA that is merged into a matrix leaves it as Q8_0, the finest of ggml's types."""

    @dataclass(frozen=True)
    class Params:
        orig_dtype: torch.dtype
        orig_shape: tuple[int, ...]
        kind: str
        scale: None = None  # in the blocks; ComfyUI asks for one

        def _tensor_fields(self) -> list[str]:
            return []

        def to_device(self, device):
            return self

        def clone(self):
            return self

        def copy_from(self, src, non_blocking=False):
            object.__setattr__(self, "kind", src.kind)

    @classmethod
    def quantize(cls, tensor: Tensor, **kwargs):
        return ggml.quantise(tensor), cls.Params(tensor.dtype, tuple(tensor.shape), "Q8_0")

    @classmethod
    def dequantize(cls, qdata: Tensor, params) -> Tensor:
        return ggml.dequantise(qdata, params.kind).to(params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor):
        return (qtensor._qdata,)

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params) -> dict[str, Tensor]:
        return {"": qdata}


register_layout_class(LAYOUT, BlockLayout)


def with_blocks(core):
    """ComfyUI's mixed-precision operations, whose linear layers take packed matrices as well."""

    class Operations(core):
        class Linear(core.Linear):
            def _load_from_state_dict(self, state_dict, prefix, *args):
                mark = state_dict.get(prefix + quantised.MARK.removeprefix("."))
                how = json.loads(mark.numpy().tobytes()) if mark is not None else {}
                if how.get("format") != "gguf":
                    super()._load_from_state_dict(state_dict, prefix, *args)
                    return
                del state_dict[prefix + quantised.MARK.removeprefix(".")]
                params = BlockLayout.Params(self.factory_kwargs["dtype"], self._orig_shape, how["type"])
                self.quant_format, self.layout_type, self._full_precision_mm = "gguf", LAYOUT, True
                self.weight = nn.Parameter(QuantizedTensor(state_dict.pop(prefix + "weight"), LAYOUT, params),
                                           requires_grad=False)

    return Operations
