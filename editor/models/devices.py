"""Where a scan computes and how precisely: devices, lower precision, compiled forward passes, and batches that fit in
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

from ..choices import AskedPrecision, PassPrecision
from ..errors import ModelError

Result = TypeVar("Result")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# What `--batch-size auto` starts from; it only ever gets smaller, when memory runs out.
START_SIZES = {"cuda": 512, "mps": 64}
START_SIZE = 32
# Words of the CPU's allocator and of MPS, which raise a plain RuntimeError.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


def require_device(name: str) -> torch.device:
    """The device of a name such as `cpu`, `cuda`, `cuda:1` or `mps`.

    Raises:
        ModelError: If there is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(
            f"cannot use device {name!r}: it is none of cpu, cuda, cuda:1, mps. Correct --device."
        ) from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= counts.get(device.type, 0):
        raise ModelError(
            f"cannot use device {name}: PyTorch {torch.__version__} sees {counts.get(device.type, 0)} of that kind "
            "here. Choose another --device, or install a build of PyTorch for it."
        )
    return device


def sums_device(device: torch.device) -> torch.device:
    """Where float64 sums are kept: with the model, but not on MPS, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def lower_precision(device: torch.device, precision: PassPrecision) -> AbstractContextManager[object]:
    """Matrix products in bf16 or fp16 inside the block; weights, norms and what is kept stay as they are."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, DTYPES[precision])


def choose_precision(asked: AskedPrecision, device: torch.device) -> PassPrecision:
    """What is asked for; of `auto` bf16 where the device multiplies it by instructions of its own, else fp32."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Other CPUs emulate it, slower than fp32.
    known = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return "bf16" if known.get("amx_bf16") or known.get("avx512_bf16") else "fp32"


def start_size(device: torch.device) -> int:
    """The batch that `auto` starts from."""
    return START_SIZES.get(device.type, START_SIZE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


class BatchLimit:
    """The largest part of a batch that goes through the model at once; halved when memory runs out, if it may be."""

    def __init__(self, size: int, *, may_shrink: bool):
        self.size, self.may_shrink = size, may_shrink

    def run(self, count: int, compute: Callable[[slice], Result]) -> Iterator[tuple[slice, Result]]:
        """`compute` on neighbouring parts of `count` items, each as large as memory allows.

        Raises:
            ModelError: If memory runs out and the size is fixed, or is one.
        """
        start = 0
        while start < count:
            part = slice(start, min(start + self.size, count))
            result = self._attempt(part, compute)
            # None: memory ran out, and the same images are tried again in a smaller part.
            if result is not None:
                yield part, result
                start = part.stop

    def _attempt(self, part: slice, compute: Callable[[slice], Result]) -> Result | None:
        try:
            return compute(part)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # The error is gone here, and with it the tensors that its frames held.
        self._shrink(part.stop - part.start)
        return None

    def _shrink(self, size: int) -> None:
        if not self.may_shrink:
            raise ModelError(
                f"cannot compute batches of {size} images: memory ran out. Give a smaller --batch-size, or `auto`."
            )
        if size == 1:
            raise ModelError("cannot compute a single image: memory ran out. Free memory, or choose another --device.")
        # Half of what failed, which at the end of a batch may be less than the limit.
        self.size = max(1, size // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
