"""Layer-ablation curves: accuracy as a model's layers are mean-ablated, from the last to the first."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..components import ComponentGroup
from ..errors import StatisticsError
from ..images.source import ImageSource, LabelledImages
from ..models.model import Model
from ..scan.collect import iterate_pixels
from ..scan.scan import Scan
from ..scan.tally import Progress
from .evaluate import build_measure

KINDS = {"attention": ("head", "bias"), "MLPs": ("mlp",), "both": ("head", "bias", "mlp")}
Curves = dict[str, list[dict[str, float]]]


def measure_layer_ablation(
    scan: Scan,
    model: Model,
    dataset: str | Path | LabelledImages,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Curves:
    """Figures with the last 0, 1, ... n_layers layers mean-ablated, for attention, for MLPs and for both.

    The ablation is `direct`: each contribution gives way to its mean over the scan's images at the readout, and nothing
    that was computed from it changes (Gandelsman et al., ICLR 2024, section 3.2).

    Returns:
        By kind of component a list of rows as `evaluate` gives them; the first is the unedited model.

    Raises:
        StatisticsError: If the scan does not hold every layer and MLP, or is of other weights.
        ImageError: If images or labels cannot be read.
    """
    layers = model.tower.n_layers
    if not scan.mlps or len(scan.layers) != layers:
        raise StatisticsError(
            f"cannot ablate every layer: the scan holds {len(scan.layers)} of {layers} layers"
            f"{'' if scan.mlps else ' and no MLPs'}. Scan with --layers all --mlps."
        )
    source, measure = build_measure(model, dataset)
    embeddings, excess, kept = _collect_layer_excess(scan, model, source, batch_size, progress)
    found: Curves = {}
    for kind, kinds in KINDS.items():
        ablated = embeddings.clone()
        rows = [measure(ablated.clone(), kept)]
        for layer in reversed(range(layers)):
            ablated -= sum(excess[f"{part}{layer}"] for part in kinds)
            rows.append(measure(ablated.clone(), kept))
        found[kind] = rows
    return found


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
            parts[_layer_key(group)].append(torch.einsum("hek,ihk->ie", readouts[group.name].float(), beyond.float()))
        kept += indices
    return torch.cat(embeddings), {key: torch.cat(found) for key, found in parts.items()}, kept


def _layer_key(group: ComponentGroup) -> str:
    return f"{group.ids[0].kind}{group.ids[0].layer}"
