"""What a training state takes on disk, and a save in memory, from the sizes of the UNet's tensors; imports no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from tuitrain.config.schema import AdafactorConfig, AdamWConfig, ProdigyConfig, TrainConfig

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_MIN_8BIT_NUMEL = 4096  # bitsandbytes keeps smaller tensors in 32 bits
_BLOCK_NUMEL = 256  # of 8-bit numbers that share a scale
_MAP_NUMEL = 256  # what the 8 bits stand for, kept with each tensor
_HEADER_BYTES = 130  # of a tensor's entry in a safetensors file
_MANIFEST_BYTES = 90  # of a parameter's entry in state.json


@dataclass(frozen=True)
class TensorFigures:
    """Sizes of a network's tensors.

    Args:
        num_parameters: numbers in all of them.
        num_tensors: how many they are.
        num_small: numbers in tensors that 8-bit optimizers keep in 32 bits.
        num_large_tensors: how many the others are.
        num_factored: rows and columns of all matrices, and vectors.
    """

    num_parameters: int
    num_tensors: int
    num_small: int
    num_large_tensors: int
    num_factored: int

    @classmethod
    def of_shapes(cls, shapes: Iterable[Sequence[int]]) -> "TensorFigures":
        """Those of tensors with these shapes."""
        shapes = list(shapes)
        numels = [prod(shape) for shape in shapes]
        return cls(
            num_parameters=sum(numels),
            num_tensors=len(numels),
            num_small=sum(numel for numel in numels if numel < _MIN_8BIT_NUMEL),
            num_large_tensors=sum(numel >= _MIN_8BIT_NUMEL for numel in numels),
            num_factored=sum(prod(shape[:1]) + (prod(shape[1:]) if len(shape) > 1 else 0) for shape in shapes),
        )


SDXL_BASE_UNET = TensorFigures(
    num_parameters=2_567_463_684, num_tensors=1680, num_small=917_764, num_large_tensors=864, num_factored=4_671_660
)


def state_bytes(config: TrainConfig, unet: TensorFigures) -> int:
    """Bytes of a state beside its checkpoint, within 1 %."""
    trained_dtype = _trained_dtype(config)
    is_average_saved = config.ema_decay is not None
    optimizer_bytes, num_entries = _optimizer_size(config, unet)
    total = optimizer_bytes + num_entries * _HEADER_BYTES + unet.num_tensors * _MANIFEST_BYTES
    if is_average_saved or config.save_dtype != trained_dtype:  # else the checkpoint's own weights serve
        total += unet.num_parameters * _DTYPE_BYTES[trained_dtype] + unet.num_tensors * _HEADER_BYTES
    if is_average_saved and config.save_dtype != "float32":
        total += unet.num_parameters * 4 + unet.num_tensors * _HEADER_BYTES
    return total


def copy_bytes(config: TrainConfig, unet: TensorFigures) -> int:
    """Bytes of the computer's memory that a save copies, so that training can go on while they are written."""
    of_weights = unet.num_parameters * _DTYPE_BYTES[_trained_dtype(config)]
    of_average = unet.num_parameters * 4 if config.ema_decay is not None else 0
    if config.save_state == "none":
        return of_average or of_weights
    optimizer_bytes, _ = _optimizer_size(config, unet)
    if isinstance(config.optimizer, AdamWConfig) and config.optimizer.use_8bit:
        optimizer_bytes -= 2 * 4 * (unet.num_large_tensors - 1) * _MAP_NUMEL  # all tensors have the same two
    return of_weights + of_average + optimizer_bytes


def _trained_dtype(config: TrainConfig) -> str:
    return config.weight_dtype if config.mixed_precision == "no" else "float32"


def _optimizer_size(config: TrainConfig, unet: TensorFigures) -> tuple[int, int]:
    """Bytes of the optimizer's tensors, and how many they are."""
    match config.optimizer:
        case AdamWConfig(use_8bit=True):
            num_large = unet.num_parameters - unet.num_small
            scales_and_maps = num_large // _BLOCK_NUMEL + unet.num_large_tensors * _MAP_NUMEL
            num_entries = 2 * unet.num_tensors + 4 * unet.num_large_tensors
            return 2 * (unet.num_small * 4 + num_large + scales_and_maps * 4), num_entries
        case AdamWConfig():
            return 2 * 4 * unet.num_parameters, 3 * unet.num_tensors
        case AdafactorConfig():
            return 4 * unet.num_factored, 2 * unet.num_tensors
        case ProdigyConfig():
            return 4 * 4 * unet.num_parameters, 4 * unet.num_tensors


def num_states(config: TrainConfig, num_checkpoints: int) -> int:
    """States on disk at once, of so many checkpoints: the last one goes when the new one is there and was read back."""
    return {"none": 0, "last": min(2, num_checkpoints), "all": num_checkpoints}[config.save_state]
