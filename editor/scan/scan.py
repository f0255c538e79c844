"""scan: images to statistics. The only stage, besides evaluation, that reads images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..choices import AskedPrecision, Decode, Exif, PassPrecision, Side
from ..components import ComponentGroup, Features
from ..errors import ModelError, StatisticsError, describe_given, require_kinds, require_path
from ..files.inputs import require_scan_file
from ..files.tensors import load_tensors
from ..files.whole import save_tensors
from ..images.batches import Batch, load_batches
from ..images.listing import list_images
from ..images.source import ImageSource
from ..images.texts import list_texts
from ..models.devices import choose_precision
from ..models.identity import describe_function, find_function_difference
from ..models.loaders import lasting_name
from ..models.model import Model
from ..notebook import html_facts
from .description import check_description, check_sample, check_sums
from .features import write_features
from .sample import Sample, merge_samples
from .scanner import Scanner
from .statistics import PARTS, GroupSums, Statistics, sum_statistics
from .tally import MAX_BAD, Progress, Tally

KIND, OLD_KIND = "clipedit-scan-2", "clipedit-scan-1"
# The fewest images that a fold is judged on.
LEAST_FOLD = 4
# In which scans must be alike to be summed.
SETTINGS = ("weights_hash", "function", "aligner_digest", "tower", "layers", "mlps", "self_attention")
SETTINGS += ("exif", "decode", "precision")


@dataclass(frozen=True)
class Scan:
    """Statistics of a model on a set of images, and what they were made from.

    Attributes:
        model_name, pretrained, weights_hash: The model that was scanned.
        fingerprint: SHA-256 of the images' names and sizes; merged scans hold the sorted list of both.
        layers: The layers whose heads were scanned.
        mlps: Whether MLPs and the embedding were scanned too.
        bad: Images that could not be read, with the reason.
        aligner, aligner_digest: The file through which the model was read, if it was aligned to a CLIP, and its maps'
            hash.
        tower: `image`, or `text` where texts were scanned.
        unit: For a partial scan, its work unit and how it was computed (`editor/scan/partials.py`); None for others.
        more_bad: Images that could not be read and are not named in `bad`.
        exif, decode, precision: Whether photos were turned upright and large JPEGs decoded in full, and what the model
            multiplied in; versions that did not say ignored EXIF, decoded in full and computed in fp32.
        function: What the model computes with its weights (`editor/models/identity.py`); None for scans of format 1.
        sample: Features of a few images; None for scans of format 1.
        folds: The sums, in parts that an image falls into by its key. What is fitted on some is judged on the others;
            scans of format 1 have one, and nothing of theirs can be judged so.
    """

    folds: tuple[Statistics, ...]
    model_name: str
    pretrained: str | None
    weights_hash: str
    fingerprint: str
    layers: tuple[int, ...]
    mlps: bool
    bad: tuple[tuple[str, str], ...] = ()
    self_attention: bool = False
    aligner: str | None = None
    aligner_digest: str | None = None
    tower: Side = "image"
    unit: dict[str, Any] | None = None
    more_bad: int = 0
    function: dict[str, Any] | None = None
    sample: Sample | None = None
    exif: Exif = "ignore"
    decode: Decode = "exact"
    precision: PassPrecision = "fp32"

    @cached_property
    def statistics(self) -> Statistics:
        """The sums over all images."""
        return sum_statistics(self.folds)

    @property
    def is_folded(self) -> bool:
        """Whether figures can be judged on images that they were not fitted to."""
        return sum(fold.n >= LEAST_FOLD for fold in self.folds) > 1

    def __repr__(self) -> str:
        model = " ".join(filter(None, (self.model_name, self.pretrained)))
        layers = ", ".join(map(str, self.layers))
        kind = "images" if self.tower == "image" else "texts"
        bad = len(self.bad) + self.more_bad
        unreadable = f", {bad} more could not be read" if bad else ""
        return f"<Scan of {model}: {self.statistics.n} {kind}, layers {layers}, {len(self.folds)} folds{unreadable}>"

    def _repr_html_(self) -> str:
        facts = (
            ("model", " ".join(filter(None, (self.model_name, self.pretrained)))),
            ("tower", self.tower),
            ("images", self.statistics.n),
            ("could not be read", len(self.bad) + self.more_bad or None),
            ("layers", ", ".join(map(str, self.layers))),
            ("also scanned", ", ".join(n for n in ("mlps", "self_attention") if getattr(self, n)).replace("_", "-")),
            ("aligner", self.aligner),
            ("weights, SHA-256", self.weights_hash),
            ("images, SHA-256", self.fingerprint),
        )
        return html_facts("scan", facts)

    def save(self, path: str | Path) -> None:
        """Write `scan.safetensors`; the metadata holds everything but the sums and the sample's features."""
        tensors: dict[str, Tensor] = {}
        for number, fold in enumerate(self.folds):
            tensors[f"fold{number}.gg"] = fold.gg
            for name, sums in fold.groups.items():
                tensors |= {f"fold{number}.{name}.{part}": getattr(sums, part) for part in PARTS}
        described = {field.name: getattr(self, field.name) for field in fields(self)}
        described |= {"folds": [fold.n for fold in self.folds], "sample": None}
        if self.sample is not None:
            described["sample"] = {"marks": self.sample.marks, "names": self.sample.names}
            tensors |= {f"sample.{name}": tensor for name, tensor in self.sample.features.groups.items()}
            tensors |= {"sample.final": self.sample.features.final, "sample.embedding": self.sample.features.embedding}
        save_tensors(Path(path), tensors, KIND, described)

    def merge(self, other: Scan) -> Scan:
        """The scan of both sets of images.

        Raises:
            StatisticsError: If the model or the layers differ, or some images are in both.
        """
        for key in SETTINGS:
            if getattr(self, key) != getattr(other, key):
                raise StatisticsError(
                    f"cannot merge scans: {key} is {getattr(self, key)} in one and {getattr(other, key)} in the other."
                )
        twice = set(self.fingerprint.split("+")) & set(other.fingerprint.split("+"))
        if twice:
            raise StatisticsError(
                f"cannot merge scans: images {min(twice)[:12]} are in both, and would count twice. Give each scan once."
            )
        if len(self.folds) != len(other.folds):
            raise StatisticsError(
                f"cannot merge scans: one keeps its sums in {len(self.folds)} folds, the other in {len(other.folds)}. "
                "Scan both with this version."
            )
        # Sorted, so that it does not matter which of the two is merged into the other.
        prints = sorted([*self.fingerprint.split("+"), *other.fingerprint.split("+")])
        # `+` and not `add`, which would change the sums of this scan.
        folds = tuple(one + two for one, two in zip(self.folds, other.folds, strict=True))
        return replace(
            self,
            folds=folds,
            fingerprint="+".join(prints),
            bad=self.bad + other.bad,
            unit=None,
            more_bad=self.more_bad + other.more_bad,
            sample=merge_samples(self.sample, other.sample),
        )

    def groups(self, model: Model) -> list[ComponentGroup]:
        """The scanned components of a model.

        Raises:
            StatisticsError: If the scan was made with other weights.
        """
        if self.weights_hash != model.weights_hash:
            raise StatisticsError(
                f"cannot use this scan with {model.name}: it was made with weights {self.weights_hash[:12]} "
                f"({self.model_name}), the model has {model.weights_hash[:12]}. Scan this model."
            )
        difference = self.function and find_function_difference(self.function, describe_function(model.config))
        if difference:
            raise StatisticsError(
                f"cannot use this scan with {model.name}: the weights are the same, but {difference}. Scan this model."
            )
        if self.aligner_digest != (model.texts_from and model.texts_from.digest):
            raise StatisticsError(
                f"cannot use this scan with {model.name}: it was made through {self.aligner or 'no aligner'}, the "
                f"model is read through {model.texts_from.path if model.texts_from else 'none'}. Give that --aligner, "
                "or scan again."
            )
        if self.tower != model.side:
            raise StatisticsError(
                f"cannot use this scan with the {model.side} tower of {model.name}: it is of the {self.tower} tower. "
                f"Scan with --tower {model.side}, or take model.with_tower({self.tower!r})."
            )
        return self._require_groups(model.tower.groups(choose_layers(model, self.layers), mlps=self.mlps))

    def _require_groups(self, groups: list[ComponentGroup]) -> list[ComponentGroup]:
        for group in groups:
            found = self.statistics.groups.get(group.name)
            if found is None or tuple(found.u.shape) != (len(group.ids), group.k):
                raise StatisticsError(f"cannot use the scan: its {group.name} is not that of the model. Scan it again.")
        return groups


def scan(
    model: Model,
    images: str | Path | ImageSource | Sequence[str | Path],
    *,
    batch_size: int | None = 32,
    layers: Sequence[int] | None = None,
    mlps: bool = False,
    self_attention: bool = False,
    workers: int | None = None,
    max_bad: float = MAX_BAD,
    keep_features: Path | None = None,
    precision: AskedPrecision = "fp32",
    compiled: bool = False,
    exif: Exif = "upright",
    decode: Decode = "scaled",
    progress: Progress | None = None,
) -> Scan:
    """Collect the statistics of a model's heads on images.

    Args:
        images: A folder, a CSV, a list of files, or `demo`; for `model.with_tower("text")` a file with a text a line.
        batch_size: Images a forward pass; None for as many as fit in memory, found by trying.
        layers: Layers whose heads are scanned; the last four by default.
        mlps: Also scan every MLP and the embedding, so that scores account for the whole embedding.
        self_attention: Also scan what CLS takes from itself in every head, for edits that ablate it; a second forward
            pass.
        workers: Processes that read images.
        max_bad: Share of unreadable images that is tolerated, in [0, 1].
        keep_features: A file to write the features of every image to; see `editor/scan/features.py` for its size.
        precision: Of matrix products in the forward pass; sums are float64 in any case. `auto`: see `choose_precision`.
        compiled: Let `torch.compile` make the forward pass: minutes at the start, less for every image.
        exif: `ignore` reads photos as they are stored, as open_clip does, and not turned as their EXIF says.
        decode: `exact` decodes all pixels of large JPEGs, as open_clip does; `scaled` a half, a quarter or an eighth of
            each side, where that leaves twice what the model takes.
        progress: Called with images done and in total.

    Raises:
        ImageError: If there are no images, or more than `max_bad` of them cannot be read.
    """
    require_kinds("scan images", model=(model, Model))
    source = list_texts(images) if model.side == "text" else list_images(images)
    chosen = choose_layers(model, layers)
    how = choose_precision(precision, model.device)
    scanner = Scanner(model, chosen, mlps, self_attention, batch_size, how, compiled, exif, decode)
    tally = Tally(len(source), max_bad, progress)
    kept = write_features(keep_features, model, scanner.groups, source, chosen) if keep_features else nullcontext(None)
    with kept as write:
        folds, sample = scanner.sum_folds(source, read_batches(scanner, source, workers), tally.add, write)
    return describe_scan(scanner, folds, source.fingerprint(), tally.bad, sample)


def read_batches(scanner: Scanner, source: ImageSource, workers: int | None) -> Iterator[Batch]:
    """The source's batches as a scanner takes them; for a GPU in memory that it copies from while it computes."""
    model = scanner.model
    pinned, source = model.device.type == "cuda", source.read_as(model.decoding(scanner.exif, scanner.decode))
    return load_batches(source, model.prepare(source), batch_size=scanner.read_size, workers=workers, pinned=pinned)


def describe_scan(
    scanner: Scanner,
    folds: tuple[Statistics, ...],
    fingerprint: str,
    bad: Sequence[tuple[str, str]] = (),
    sample: Sample | None = None,
) -> Scan:
    """The sums, with what they were made from."""
    model = scanner.model
    return Scan(
        folds,
        lasting_name(model.name),
        model.pretrained and lasting_name(model.pretrained),
        model.weights_hash,
        fingerprint,
        scanner.layers,
        scanner.mlps,
        tuple(bad),
        scanner.self_attention,
        model.texts_from and lasting_name(model.texts_from.path),
        model.texts_from and model.texts_from.digest,
        model.side,
        function=describe_function(model.config),
        sample=sample,
        exif=scanner.exif,
        decode=scanner.decode,
        precision=scanner.precision,
    )


def choose_layers(model: Model, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers to scan, sorted: those asked for, or the last four.

    Raises:
        StatisticsError: If the model has no such layer.
    """
    n_layers = model.tower.n_layers
    if layers is not None and not isinstance(layers, Iterable):
        raise TypeError(f"cannot scan: {describe_given('layers', layers)}. Give a list, such as [{n_layers - 1}].")
    chosen = tuple(sorted(set(layers))) if layers is not None else tuple(range(max(0, n_layers - 4), n_layers))
    if not chosen or not set(chosen) <= set(range(n_layers)):
        raise StatisticsError(f"cannot scan layers {list(chosen)}: {model.name} has layers 0-{n_layers - 1}.")
    return chosen


def load_scan(path: str | Path) -> Scan:
    """Read a scan.

    Raises:
        StatisticsError: If the file is missing or is no scan.
    """
    require_path("read a scan", path, "the file that `clipedit scan` wrote")
    path = Path(path)
    require_scan_file(path)
    try:
        tensors, described = load_tensors(path, KIND, OLD_KIND)
        described = check_description(described)
        counts, kept = described.pop("folds"), described.pop("sample")
        folds = tuple(_read_fold(tensors, f"fold{number}.", n) for number, n in enumerate(counts))
        # JSON gives lists back; as tuples they compare equal to those of other scans.
        described["layers"] = tuple(described["layers"])
        described["bad"] = tuple((name, reason) for name, reason in described["bad"])
        return Scan(folds, **described, sample=_read_sample(tensors, kept))
    except ModelError as error:
        raise StatisticsError(str(error)) from None
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise StatisticsError(f"cannot read the scan {path}: {error}. It was not written by `clipedit scan`.") from None


def _read_fold(tensors: Mapping[str, Tensor], prefix: str, n: int) -> Statistics:
    """One fold's sums, checked; scans of format 1 have no prefix."""
    if f"{prefix}gg" not in tensors and "gg" in tensors:
        prefix = ""
    # Only both ends are cut: names of groups hold dots themselves, as in `L3.mlp`.
    names = [name.removesuffix(".uu") for name in tensors if name.startswith(prefix) and name.endswith(".uu")]
    names = [name.removeprefix(prefix) for name in names]
    groups = {name: GroupSums(*(tensors[f"{prefix}{name}.{part}"] for part in PARTS)) for name in names}
    return check_sums(Statistics(n, tensors[f"{prefix}gg"], groups))


def _read_sample(tensors: Mapping[str, Tensor], kept: Mapping[str, Any] | None) -> Sample | None:
    if kept is None:
        return None
    parts = {name.removeprefix("sample."): tensor for name, tensor in tensors.items() if name.startswith("sample.")}
    final, embedding = parts.pop("final"), parts.pop("embedding")
    return check_sample(Sample(Features(parts, {}, final, embedding), tuple(kept["marks"]), tuple(kept["names"])))
