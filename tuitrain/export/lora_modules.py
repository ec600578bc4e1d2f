"""The layers of SDXL's UNet that a LoRA covers, with the names every client knows; reads no weights.

Clients spell a module in two ways. The original one, `lora_unet_input_blocks_4_1_...`, is read by all of them; a file
with both spellings loses half its keys in diffusers. A LoRA covers every Linear and Conv2d inside the blocks: 788
modules, 99.65 % of the parameters of SDXL.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tuitrain.engine.original_names import original_tensor

_GROUPS = {
    ".attn1.": "self-attention",
    ".attn2.": "cross-attention",
    ".ff.net.0.": "feed-forward in",
    ".ff.net.2": "feed-forward out",
    ".proj_in": "transformer projections",
    ".proj_out": "transformer projections",
    ".time_emb_proj": "time embeddings",
    ".conv_shortcut": "shortcut convolutions",
}
_OTHER_GROUP = "3x3 convolutions"


@dataclass(frozen=True)
class BlockModule:
    """A layer with a weight (out, in) or (out, in, kh, kw), as a matrix (m, n) with n = in * kh * kw.

    Args:
        weight: the name of that tensor in diffusers.
        key: the beginning of the names in the LoRA file.
        shape: of the weight.
        group: its kind, in words.
    """

    weight: str
    key: str
    shape: tuple[int, ...]
    group: str

    @property
    def m(self) -> int:
        return self.shape[0]

    @property
    def n(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def is_spatial(self) -> bool:
        """Whether it is a convolution over more than one pixel."""
        return len(self.shape) == 4 and self.shape[2:] != (1, 1)

    @property
    def down_shape(self) -> tuple[int, ...]:
        """Of A after its rank: (in,) or (in, kh, kw)."""
        return self.shape[1:]

    @property
    def up_shape(self) -> tuple[int, ...]:
        """Of B after its rank: () or (1, 1)."""
        return (1,) * (len(self.shape) - 2)


def block_modules(unet: nn.Module, config: Mapping[str, Any]) -> list[BlockModule]:
    """The layers a LoRA covers, in the order of the network.

    Args:
        unet: diffusers' UNet2DConditionModel; its tensors need no memory.
        config: that it was built from.
    """
    return [
        BlockModule(f"{path}.weight", lora_key(f"{path}.weight", config), tuple(module.weight.shape), _group(path))
        for path, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and path.startswith(("down_blocks.", "mid_block.", "up_blocks."))
    ]


def lora_key(tensor: str, config: Mapping[str, Any]) -> str:
    """`lora_unet_input_blocks_4_1_proj_in` from `down_blocks.1.attentions.0.proj_in.weight` or its bias."""
    module = original_tensor("unet", tensor, config).name.rpartition(".")[0]
    return "lora_unet_" + module.replace(".", "_")


def _group(path: str) -> str:
    return next((group for part, group in _GROUPS.items() if part in path), _OTHER_GROUP)
