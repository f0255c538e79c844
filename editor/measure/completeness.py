"""completeness: how much of what a model knows its heads' texts say (Gandelsman et al., ICLR 2024, 3.2 and 4.2).

Every head of the last layers is replaced by its m TextSpan directions and all else by its mean; zero-shot accuracy is
read against m and the pool of texts, beside texts and directions drawn at random. The mean-ablation study says how much
each layer and the MLPs matter at the readout. Contributions are divided by the embedding's norm, as in the paper; the
means are those of the scan, never of the images that are measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..components import ComponentGroup, Features
from ..concepts.queries import encode_unit
from ..concepts.textspan import compute_text_span
from ..errors import ConceptError, StatisticsError
from ..images.labelled_options import LabelledOptions
from ..images.layouts import Dataset, open_dataset
from ..images.published.captions import CaptionSet
from ..images.skew import RetrievalSet
from ..models.model import Model
from ..scan.collect import iterate_pixels
from ..scan.scan import Scan
from ..scan.statistics import Statistics
from ..scan.tally import Progress
from .evaluate import Yardstick, build_yardstick
from .table import FlatRow

LAST_LAYERS = 4
RANDOM_TEXTS, RANDOM_DIRECTIONS = "random texts", "random directions"


def default_steps(d_head: int) -> list[int]:
    """0, the powers of two below `d_head`, and `d_head`, where every head is whole again."""
    return [0, *(2**i for i in range(d_head.bit_length()) if 2**i < d_head), d_head]


@dataclass(frozen=True)
class CompletenessRow:
    """Zero-shot accuracy of one variant, in [0, 1].

    Attributes:
        variant: A pool's name, `random texts`, `random directions`, or of the study what is mean-ablated.
        texts: m, the directions a head; None in the study.
        explained: Share of the heads' variance that the directions hold, mean over heads; None in the study.
        n, low, high: How many images the accuracy is of, and the ends of its 95 % interval.
    """

    variant: str
    texts: int | None
    accuracy: float
    explained: float | None
    n: int = 0
    low: float = 0.0
    high: float = 1.0


class CompletenessTable(list[CompletenessRow]):
    """The rows of `measure_completeness`; `measure` says in words what accuracy is."""

    measure: str = ""

    @property
    def rows(self) -> list[FlatRow]:
        """Flat dictionaries, as `pandas.DataFrame` and `csv` take them."""
        return [dict(vars(row)) for row in self]


def measure_completeness(
    scan: Scan,
    model: Model,
    dataset: Dataset,
    *,
    pools: Mapping[str, Sequence[str]],
    steps: Sequence[int] | None = None,
    labels: LabelledOptions | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CompletenessTable:
    """Reconstruct heads from texts and measure; then the mean-ablation study, where the scan has all layers and MLPs.

    Args:
        dataset: `demo` or labelled images; zero-shot accuracy over all of them is read.
        pools: Texts that TextSpan chooses from, by name; random texts are drawn from the first.
        steps: Values of m, at most `d_head`; 0 is everything mean-ablated. By default `default_steps`.
        labels: How the dataset is read, and the prompts of its classes.
        seed: Of the random texts and directions.

    Returns:
        `unedited`; every variant and m; then the study.

    Raises:
        ConceptError: If a pool has fewer texts than the largest m, or m is above `d_head`.
        StatisticsError: If the scan is not of this model.
        ImageError: If images or labels cannot be read.
    """
    scan.statistics.require(2)
    if model.side == "text":
        raise StatisticsError("cannot measure completeness on the text tower: it reads images. Scan the image tower.")
    wanted = sorted(set(default_steps(model.tower.d_head) if steps is None else steps))
    if not wanted or wanted[0] < 0 or wanted[-1] > model.tower.d_head:
        raise ConceptError(
            f"cannot reconstruct heads from {wanted or 'no'} texts: {model.name} has heads of {model.tower.d_head} "
            "dimensions. Give numbers from 0 to that."
        )
    groups = scan.groups(model)
    last = [g for g in groups if g.ids[0].kind == "head"][-LAST_LAYERS:]
    yardstick = _build_yardstick(model, dataset, labels or LabelledOptions())
    bases = _choose_bases(scan.statistics, model, last, pools, steps=max(1, wanted[-1]), seed=seed)
    readouts = model.tower.compute_readouts(groups)
    study = _study_variants(scan, model, groups)
    found: dict[tuple[str, int | None], list[Tensor]] = {}
    kept: list[int] = []
    for pixels, indices in iterate_pixels(model, yardstick.source, 64, 0.01, progress):
        features = model.tower.collect_features(pixels.to(model.device), groups)
        centred = _centre(features, scan.statistics, groups)
        for name, chosen in bases.items():
            for m, embedding in _reconstruct(
                centred, readouts, chosen, _mean_embedding(scan.statistics, model), wanted
            ):
                found.setdefault((name, m), []).append(embedding)
        unit = F.normalize(features.embedding.cpu().double(), dim=1)
        for name, ablated in study.items():
            found.setdefault((name, None), []).append(_ablate(unit, centred, readouts, ablated))
        kept += indices
    explained = {name: _explained(scan.statistics, readouts, chosen) for name, chosen in bases.items()}
    table = CompletenessTable(_row(key, parts, kept, yardstick, explained) for key, parts in found.items())
    table.measure = yardstick.measure
    return table


def _build_yardstick(model: Model, dataset: Dataset, labels: LabelledOptions) -> Yardstick:
    task = open_dataset(dataset, labels)
    if isinstance(task, RetrievalSet | CaptionSet):
        raise StatisticsError("cannot measure completeness on a retrieval set: it has no classes. Give a labelled set.")
    return build_yardstick(model, task, templates=labels.templates)


Bases = Mapping[str, Float[Tensor, "head d_embed step"]]


def _choose_bases(
    statistics: Statistics,
    model: Model,
    groups: Sequence[ComponentGroup],
    pools: Mapping[str, Sequence[str]],
    *,
    steps: int,
    seed: int,
) -> dict[str, Bases]:
    """Orthonormal directions of every head, in the order they are added; by variant, then group."""
    generator = torch.Generator().manual_seed(seed)
    readouts = model.tower.compute_readouts(groups)
    embedded = {name: _embed_pool(name, texts, model, steps) for name, texts in pools.items()}
    # Random texts come from the first pool, so that they differ from its row in the choice alone.
    first = next(iter(embedded.values()))
    found: dict[str, dict[str, Tensor]] = {name: {} for name in (*pools, RANDOM_TEXTS, RANDOM_DIRECTIONS)}
    for group in groups:
        readout, heads = readouts[group.name], len(group.ids)
        for name, texts in embedded.items():
            chosen, _ = compute_text_span(readout, statistics.feature_covariance(group.name), texts, steps=steps)
            found[name][group.name] = span_basis(readout, texts[chosen])
        # [head, step]: without replacement, within a head
        drawn = torch.stack([torch.randperm(len(first), generator=generator)[:steps] for _ in range(heads)])
        found[RANDOM_TEXTS][group.name] = span_basis(readout, first[drawn])
        noise = torch.randn(heads, steps, model.tower.d_embed, generator=generator, dtype=torch.float64)
        found[RANDOM_DIRECTIONS][group.name] = span_basis(readout, noise)
    return dict(found)


def span_basis(
    readouts: Float[Tensor, "head d_embed k"], directions: Float[Tensor, "head step d_embed"]
) -> Float[Tensor, "head d_embed step"]:
    """Orthonormal columns, within what each head can write, the first m spanning the first m directions' shadows."""
    # Orthonormal columns of what each head can write: [head, d_embed, k]
    basis, _ = torch.linalg.qr(readouts)
    # [head, d_embed, k], [head, step, d_embed] -> [head, k, step]
    shadows = torch.einsum("hek,hse->hks", basis, directions)
    # QR keeps the order: its first m columns span the first m shadows, so that one basis serves every m.
    return basis @ torch.linalg.qr(shadows)[0]


def _embed_pool(name: str, texts: Sequence[str], model: Model, steps: int) -> Float[Tensor, "text d_embed"]:
    if len(texts) < steps:
        raise ConceptError(
            f"cannot use the pool {name}: it has {len(texts)} texts, {steps} a head are asked for. Add texts."
        )
    return encode_unit(model, texts)


def _centre(
    features: Features, statistics: Statistics, groups: Sequence[ComponentGroup]
) -> dict[str, Float[Tensor, "image component k"]]:
    """`u / |z|` less its mean over the scan."""
    norm = features.embedding.cpu().double().norm(dim=1)[:, None, None]
    # The last column of `ug` is the sum of u / |z|.
    means = {group.name: statistics.groups[group.name].ug[..., -1] / statistics.n for group in groups}
    return {name: features.groups[name].cpu().double() / norm - mean for name, mean in means.items()}


def _mean_embedding(statistics: Statistics, model: Model) -> Float[Tensor, " d_embed"]:
    """Mean of `z / |z|` over the scan; exact where the tower has a linear readout without a bias after it."""
    # The last row of `gg` is the sum of g: without its own last two entries, that of f / |z|.
    return model.tower.readout().T @ (statistics.gg[-1, :-2] / statistics.n)


def _reconstruct(
    centred: Mapping[str, Tensor], readouts: Mapping[str, Tensor], bases: Bases, mean: Tensor, steps: Sequence[int]
) -> list[tuple[int, Float[Tensor, "image d_embed"]]]:
    """`mean + sum_h E_m E_m^T R_h (u_h - mean)` for each m; directions are added to the sum as m grows."""
    images = len(next(iter(centred.values())))
    total, done, found = mean.expand(images, -1).clone(), 0, []
    for m in steps:
        for name, basis in bases.items():
            # The directions that this m adds to the last one: the sum is never built anew.
            added = basis[:, :, done:m]
            # [head, d_embed, step], [head, d_embed, k] -> [head, step, k]: E^T R
            read = torch.einsum("hes,hek->hsk", added, readouts[name])
            # [head, d_embed, step], [head, step, k], [image, head, k] -> [image, d_embed]; each m keeps its own
            total = total + torch.einsum("hes,hsk,ihk->ie", added, read, centred[name])
        done = m
        found.append((m, total))
    return found


def _explained(statistics: Statistics, readouts: Mapping[str, Tensor], bases: Bases) -> list[float]:
    """By m from 0: the share of a head's variance along its first m directions, mean over heads."""
    shares = []
    for name, basis in bases.items():
        covariance = statistics.feature_covariance(name)
        # [head, step, k]: E^T R, so that the variance along a direction is seen cov(u / |z|) seen^T
        seen = torch.einsum("hes,hek->hsk", basis, readouts[name])
        # [head, step]: the diagonal only
        along = torch.einsum("hsk,hkl,hsl->hs", seen, covariance, seen)
        # [head]: tr R cov(u / |z|) R^T
        total = torch.einsum("hek,hkl,hel->h", readouts[name], covariance, readouts[name])
        shares.append(along.cumsum(1) / total.clamp_min(1e-300)[:, None])
    return [0.0, *torch.cat(shares).mean(0).tolist()]


def _study_variants(scan: Scan, model: Model, groups: Sequence[ComponentGroup]) -> dict[str, list[str]]:
    """Names of the groups that each row of the study mean-ablates; only `unedited` without all layers and MLPs."""
    found: dict[str, list[str]] = {"unedited": []}
    if not scan.mlps or set(scan.layers) != set(range(model.tower.n_layers)):
        return found
    mlps = [group.name for group in groups if group.ids[0].kind == "mlp"]
    # Biases go with their layer: their contribution varies with the image too, through 1 / sigma.
    attention = {
        layer: [g.name for g in groups if g.ids[0].kind in ("head", "bias") and g.ids[0].layer == layer]
        for layer in scan.layers
    }
    found["all MLPs"] = mlps
    for layer in scan.layers:
        earlier = [name for before in range(layer + 1) for name in attention[before]]
        found[f"attention of layers 0-{layer}"] = earlier
    found["all MLPs and all but the last four layers"] = [
        *mlps,
        *(name for layer in scan.layers[:-LAST_LAYERS] for name in attention[layer]),
    ]
    return found


def _ablate(
    unit: Float[Tensor, "image d_embed"],
    centred: Mapping[str, Tensor],
    readouts: Mapping[str, Tensor],
    ablated: Sequence[str],
) -> Float[Tensor, "image d_embed"]:
    """`z / |z|` with some components at their means."""
    # [component, d_embed, k], [image, component, k] -> [image, d_embed]
    removed = [torch.einsum("cek,ick->ie", readouts[name], centred[name]) for name in ablated]
    return unit - sum(removed, torch.zeros_like(unit))


def _row(
    key: tuple[str, int | None],
    parts: Sequence[Tensor],
    kept: Sequence[int],
    yardstick: Yardstick,
    explained: Mapping[str, Sequence[float]],
) -> CompletenessRow:
    (name, m), embeddings = key, torch.cat(list(parts)).float()
    accuracy, spread = yardstick.figures(embeddings, kept)["overall"], yardstick.details(embeddings, kept)
    held = explained[name][m] if m is not None else None
    return CompletenessRow(name, m, accuracy, held, **vars(spread.figures["overall"]))
