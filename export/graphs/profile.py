"""A profile: everything in which one consumer differs from another, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ...editor.choices import WeightPrecision
from ...editor.errors import ExportError
from ...editor.images.source import ImageSource
from ...editor.models.model import Model
from .adapters import Adapter


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph: one input, one output.

    Attributes:
        file: Path inside the export folder; `{suffix}` is `_fp16` or `_quantized` in these precisions. Of models over 2
            GB the weights lie beside it, in `<file>.data`.
        integer: The type of token ids; image graphs take float32.
        batch: A fixed batch size, or None for a dynamic batch axis.
        dynamic_length: Token sequences of any length; they are padded or cut to the context inside the graph.
        normalised: Whether the graph divides embeddings by their L2 norm.
        opset: Of the default domain.
    """

    file: str
    input_name: str
    output_name: str
    integer: Literal["int64", "int32"] = "int64"
    batch: int | None = None
    dynamic_length: bool = False
    normalised: bool = False
    precision: WeightPrecision = "fp32"
    opset: int = 18

    @property
    def path(self) -> str:
        """`file` at this precision."""
        return self.file.format(suffix={"fp32": "", "fp16": "_fp16", "int8": "_quantized"}[self.precision])


@dataclass(frozen=True)
class Profile:
    """What one consumer reads.

    Attributes:
        visual, textual: The two graphs, or None where the consumer reads a checkpoint.
        sidecars: The files beside the graphs or weights.
        needs_texts: Whether the consumer asks for a text tower, which bare vision transformers lack.
        precisions: Those the writer can write; `precision` is the one asked for.
        prune: Leave out heads that write a constant.
        resizing: The least mean cosine between embeddings of images that the consumer resized and that the model's own
            preprocessing did. Some crop by another rounding, one pixel aside; transformers.js filters differently.
        calibration: Images whose ranges of activations make int8 static; without them it is dynamic.
        has_adapters: Whether the writer can write adapters beside the graphs.
        adapters: The edits that the graphs can switch to; the graphs themselves then answer as the base.
    """

    target: str
    visual: GraphSpec | None = None
    textual: GraphSpec | None = None
    sidecars: tuple[str, ...] = ()
    needs_texts: bool = True
    precisions: tuple[WeightPrecision, ...] = ("fp32",)
    precision: WeightPrecision = "fp32"
    resizing: float = 0.9999
    prune: bool = False
    calibration: ImageSource | None = None
    has_adapters: bool = False
    adapters: tuple[Adapter, ...] = ()

    def at(self, precision: WeightPrecision) -> Profile:
        """The same profile in another precision, its graphs too."""
        # The graphs' paths depend on their own precision.
        visual = self.visual and replace(self.visual, precision=precision)
        textual = self.textual and replace(self.textual, precision=precision)
        return replace(self, precision=precision, visual=visual, textual=textual)

    def options(self) -> dict[str, Any]:
        """What was asked for beyond the target, as plain data for the verification's report."""
        quantised = {"quantisation": "static" if self.calibration else "dynamic"} if self.precision == "int8" else {}
        switched = {"switchable": [adapter.name for adapter in self.adapters]} if self.adapters else {}
        return {"precision": self.precision, **quantised, **switched}

    def require_precision(self, precision: WeightPrecision) -> None:
        """Refuse a precision that the target's writer does not write.

        Raises:
            ExportError: Naming those that it does.
        """
        if precision not in self.precisions:
            raise ExportError(
                f"cannot export to {self.target} in {precision}: it is written in {' or '.join(self.precisions)}. "
                f"Use --precision {self.precisions[0]}."
            )


def require_graphs(profile: Profile, option: str) -> None:
    """Refuse an option that only graphs have.

    Raises:
        ExportError: Naming a target that writes graphs.
    """
    if profile.visual is None:
        raise ExportError(
            f"cannot use {option} with {profile.target}: it holds a plain checkpoint, not a graph. Use --target onnx."
        )


def require_adapters(profile: Profile) -> None:
    """Refuse to switch edits where the target has no adapters.

    Raises:
        ExportError: Naming the target and the precision that have them.
    """
    if not profile.has_adapters:
        raise ExportError(f"cannot use --switchable with {profile.target}: it has no adapters. Use --target onnx.")
    if profile.precision != "fp32" or profile.prune:
        found = "--prune" if profile.prune else f"--precision {profile.precision}"
        raise ExportError(
            f"cannot use --switchable with {found}: adapters are of whole graphs in fp32. Leave out {found}."
        )


def require_texts(profile: Profile, model: Model) -> None:
    """Refuse a model without one of the two towers where the consumer asks for both.

    Raises:
        ExportError: Naming the target for such a model.
    """
    missing = "text" if not model.has_texts else "image" if not model.has_images else None
    missing = "text" if model.lent is not None else missing
    if profile.needs_texts and missing:
        raise ExportError(
            f"cannot export {model.name} to {profile.target}: it has no {missing} tower, which {profile.target} asks "
            f"for. Use --target {'hf' if model.is_alone else 'timm'}."
        )


def require_plain(model: Model, target: str) -> None:
    """Refuse a direct edit for a target that holds a plain checkpoint.

    Raises:
        ExportError: Naming what to do instead.
    """
    if model.readout_edit is not None:
        raise ExportError(
            f"cannot export to {target}: the model carries a direct edit, which needs extra operations. "
            "Use --effect distilled or total, or --target onnx."
        )
