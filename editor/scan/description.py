"""What a scan file says of itself, and the sums in it: checked when read, since a file may come from anybody."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..choices import Decode, Exif, PassPrecision, Side
from .sample import Sample
from .statistics import Statistics

Count = Annotated[int, Field(ge=0, le=2**53)]


class _Unit(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str
    key: str
    of: Annotated[int, Field(ge=1)]


class _Sample(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    marks: Annotated[list[str], Field(max_length=512)]
    names: Annotated[list[str], Field(max_length=512)]


class _Description(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    model_name: str
    pretrained: str | None
    weights_hash: str
    fingerprint: str
    layers: list[Count]
    mlps: bool
    bad: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = []
    self_attention: bool = False
    aligner: str | None = None
    aligner_digest: str | None = None
    tower: Side = "image"
    unit: _Unit | None = None
    more_bad: Count = 0
    folds: Annotated[list[Count], Field(min_length=1, max_length=16)]
    function: dict[str, Any] | None = None
    sample: _Sample | None = None
    exif: Exif = "ignore"
    decode: Decode = "exact"
    precision: PassPrecision = "fp32"


def check_description(described: Any) -> dict[str, Any]:
    """The description as it was read, if it has the types that it is used with; one of format 1 as of one fold.

    Raises:
        ValueError: Naming the first that has not.
    """
    if isinstance(described, dict) and "n" in described:
        described = {key: value for key, value in described.items() if key != "n"} | {"folds": [described["n"]]}
    _Description.model_validate(described)
    return {"function": None, "sample": None, "exif": "ignore", "decode": "exact", "precision": "fp32"} | described


def check_sums(statistics: Statistics) -> Statistics:
    """The sums as they were read, if their shapes go together and they are finite.

    Raises:
        ValueError: Naming the first that does not.
    """
    wide = len(statistics.gg)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {"gg": (tuple(statistics.gg.shape), (wide, wide))}
    for name, sums in statistics.groups.items():
        # Padded: too few axes are then reported as a wrong shape, and do not fail here.
        count, k = (*sums.u.shape, 0, 0)[:2]
        shapes[f"{name}.u"] = (tuple(sums.u.shape), (count, k))
        shapes[f"{name}.uu"] = (tuple(sums.uu.shape), (count, k, k))
        shapes[f"{name}.ug"] = (tuple(sums.ug.shape), (count, k, wide))
        shapes[f"{name}.v"] = (tuple(sums.v.shape), (count, *sums.v.shape[1:2]))
    wrong = next(
        (f"{name} is {found}, {wanted} is needed" for name, (found, wanted) in shapes.items() if found != wanted), None
    )
    tensors = [
        statistics.gg,
        *(tensor for sums in statistics.groups.values() for tensor in (sums.uu, sums.ug, sums.u, sums.v)),
    ]
    if (
        wrong is not None
        # `g` ends in `1 / |z|` and 1, so it is never narrower.
        or wide < 2
        or not all(tensor.is_floating_point() and _is_finite(tensor) for tensor in tensors)
    ):
        raise ValueError(wrong or "its sums are no finite numbers")
    return statistics


def check_sample(sample: Sample) -> Sample:
    """The sample as it was read, if it has one row per image everywhere and finite numbers.

    Raises:
        ValueError: Naming what has not.
    """
    tensors = {**sample.features.groups, "final": sample.features.final, "embedding": sample.features.embedding}
    for name, tensor in tensors.items():
        # [image, d] for these two, [image, component, k] for groups.
        wide = 2 if name in ("final", "embedding") else 3
        if len(tensor) != len(sample.marks) or tensor.ndim != wide or not tensor.is_floating_point():
            raise ValueError(f"its sample's {name} is {tuple(tensor.shape)}, for {len(sample.marks)} images")
        if not _is_finite(tensor):
            raise ValueError(f"its sample's {name} holds no finite numbers")
    if len(sample.names) != len(sample.marks) or list(sample.marks) != sorted(sample.marks):
        raise ValueError("its sample's names are damaged")
    return sample


def _is_finite(tensor: Tensor) -> bool:
    # A sum over numbers that are not finite is not finite either, and takes one pass over memory and no copy.
    # The second look is for finite numbers whose sum overflows.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
