"""Layer-ablation curves: accuracy as a model's layers are mean-ablated, from the last to the first."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..components import ComponentGroup
from ..errors import StatisticsError
from ..images.labelled_options import LabelledOptions
from ..images.layouts import Dataset, open_dataset
from ..images.source import ImageSource
from ..models.model import Model
from ..scan.collect import BATCH_SIZE, iterate_pixels
from ..scan.scan import Scan
from ..scan.tally import Progress
from .evaluate import build_yardstick
from .table import Details, FlatRow

KINDS = {"attention": ("head", "bias"), "MLPs": ("mlp",), "both": ("head", "bias", "mlp")}


class Curves(dict[str, list[dict[str, float]]]):
    """By kind of component a list of rows as `evaluate` gives them; the first is the unedited model.

    Attributes:
        details: The same lists, of numbers of images, intervals and groups.
        measure: In words, what was measured.
    """

    def __init__(self, measure: str) -> None:
        super().__init__()
        self.details: dict[str, list[Details]] = {}
        self.measure = measure

    @property
    def rows(self) -> list[FlatRow]:
        """As `FigureTable.rows`, with what is `ablated`, in how many `layers`, in place of the model."""
        return [
            flat
            for kind, curve in self.items()
            for layers, (row, details) in enumerate(zip(curve, self.details[kind], strict=True))
            for flat in details.flat(row, ablated=kind, layers=layers)
        ]


def measure_layer_ablation(
    scan: Scan,
    model: Model,
    dataset: Dataset,
    *,
    labels: LabelledOptions | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> Curves:
    """Figures with the last 0, 1, ... n_layers layers mean-ablated, for attention, for MLPs and for both.

    The ablation is `direct`: each contribution gives way to its mean over the scan's images at the readout, and nothing
    that was computed from it changes (Gandelsman et al., ICLR 2024, section 3.2).

    Args:
        labels: How the dataset is read, and the prompts of its classes.

    Raises:
        StatisticsError: If the scan does not hold every layer and MLP, or is of other weights.
        ImageError: If images or labels cannot be read.
    """
    labels = labels or LabelledOptions()
    layers = model.tower.n_layers
    if not scan.mlps or len(scan.layers) != layers:
        raise StatisticsError(
            f"cannot ablate every layer: the scan holds {len(scan.layers)} of {layers} layers"
            f"{'' if scan.mlps else ' and no MLPs'}. Scan with --layers all --mlps."
        )
    found = build_yardstick(model, open_dataset(dataset, labels), templates=labels.templates)
    embeddings, excess, kept = _collect_layer_excess(scan, model, found.source, batch_size, progress)
    curves = Curves(found.measure)
    for kind, kinds in KINDS.items():
        # Ablations under `direct` add up: each step takes away one layer more from the embedding.
        ablated = embeddings.clone()
        steps = [ablated.clone()]
        # In place, and so copied at every step.
        for layer in reversed(range(layers)):
            ablated -= sum(excess[f"{part}{layer}"] for part in kinds)
            steps.append(ablated.clone())
        curves[kind] = [found.figures(step, kept) for step in steps]
        curves.details[kind] = [found.details(step, kept) for step in steps]
    return curves


def _collect_layer_excess(
    scan: Scan, model: Model, source: ImageSource, batch_size: int, progress: Progress | None
) -> tuple[Float[Tensor, "image d_embed"], dict[str, Float[Tensor, "image d_embed"]], list[int]]:
    """Embeddings, and what heads, bias and MLP of each layer write beyond their mean.

    Memory: `3 * n_layers * len(source) * d_embed` floats.
    """
    groups = [group for group in scan.groups(model) if group.ids[0].kind != "embedding"]
    readouts = model.tower.compute_readouts(groups)
    embeddings: list[Tensor] = []
    parts: dict[str, list[Tensor]] = {_layer_key(group): [] for group in groups}
    kept: list[int] = []
    for pixels, indices in iterate_pixels(model, source, batch_size, 0.01, progress):
        features = model.tower.collect_features(pixels.to(model.device), groups)
        embeddings.append(features.embedding.cpu())
        for group in groups:
            beyond = features.groups[group.name].cpu() - scan.statistics.mean_features(group.name).float()
            # [component, d_embed, k], [image, component, k] -> [image, d_embed]
            parts[_layer_key(group)].append(torch.einsum("hek,ihk->ie", readouts[group.name].float(), beyond.float()))
        kept += indices
    return torch.cat(embeddings), {key: torch.cat(found) for key, found in parts.items()}, kept


def _layer_key(group: ComponentGroup) -> str:
    return f"{group.ids[0].kind}{group.ids[0].layer}"
