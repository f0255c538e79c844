"""retrieve: images that share one property with a text or a reference image, by the heads that carry the property.

The index is a scan with cached features: `index.safetensors` and `index.features.safetensors`, memory-mapped and read
in blocks. The search is exact, one matrix product a block. An approximate index (faiss) would hold the vectors of one
choice of heads only, and would have to be built anew, from all features, for every other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..components import Features, HeadId
from ..concepts.concepts import Concept, load_concept
from ..concepts.queries import encode_queries, require_text_fits
from ..concepts.scores import score_heads
from ..errors import StatisticsError
from ..files.inputs import require_query
from ..files.whole import staged_file
from ..images.decode import UPRIGHT, open_image
from ..images.listing import list_images
from ..images.source import ImageSource
from ..models.model import Model
from ..scan.features import features_path, load_features
from ..scan.scan import Scan, load_scan, scan
from ..scan.tally import Progress
from ..select.plan import select_top_heads
from ..select.whose_heads import judge_concept
from .pictures import draw_sheet

DEFAULT_COMPARED, BLOCK = 12, 65_536
# Fewer images than this, or a spread below this share of the mean's length, have no mean worth taking off.
LEAST_TO_CENTRE, LEAST_SPREAD = 10, 1e-3


@dataclass(frozen=True)
class Index:
    """The features of a source's images, and the statistics that say what heads carry a concept.

    Attributes:
        kept: Positions in `source` of the rows of `features`: images that could not be read have none.
    """

    source: ImageSource
    kept: Sequence[int]
    features: Features
    scan: Scan


@dataclass(frozen=True)
class Hit:
    """One image that was found. `similarity`: a cosine to the reference image; for texts a part of the cosine."""

    name: str
    similarity: float
    position: int


def open_index(
    model: Model, images: str | Path | ImageSource, path: Path, *, progress: Progress | None = None
) -> Index:
    """Read an index from disk, or make it if there is none.

    Raises:
        StatisticsError: If the one on disk was made of other images or with another model.
        ImageError: As `scan`.
    """
    source = list_images(images)
    if not path.is_file():
        scan(model, source, keep_features=features_path(path), progress=progress).save(path)
    found = load_scan(path)
    cached = load_features(features_path(path))
    cached.require(model, found.layers)
    found.groups(model)  # Refuses another aligner.
    if found.fingerprint != source.fingerprint():
        raise StatisticsError(
            f"cannot use the index {path}: the images have changed since. Delete it, or choose another --index."
        )
    features, kept = cached.select(source)
    return Index(source.read_as(model.decoding(found.exif, found.decode)), kept, features, found)


def choose_property_heads(
    index: Index, model: Model, concept: str | Concept, *, heads: int | None = None
) -> list[HeadId]:
    """The heads that carry a concept most, by the index's own statistics.

    Args:
        heads: How many; by default `DEFAULT_COMPARED`, or all of a small model.

    Raises:
        ConceptError: If the concept is unknown.
        RecipeError: If there are fewer heads.
    """
    scores = score_heads(index.scan, model, concept=concept)
    present = sum(len(group.ids) for group in index.scan.groups(model) if group.ids[0].kind == "head")
    return select_top_heads(scores, min(DEFAULT_COMPARED, present) if heads is None else heads)


def retrieve(
    index: Index,
    model: Model,
    *,
    text: str | None = None,
    image: Image.Image | None = None,
    heads: Sequence[HeadId] | None = None,
    count: int = 10,
) -> list[Hit]:
    """The images nearest to a text or to a reference image.

    Args:
        text: Images are ranked by what the heads add to the cosine with it.
        image: Images are ranked by the cosine to it of what the heads wrote, the index's mean taken off where there is
            one: see `compute_centre`.
        heads: By default the whole embedding is compared.

    Raises:
        ConceptError: If there is not exactly one query, or the text is too long.
    """
    require_query(text, image)
    if text is not None:
        query = encode_queries(model, [text])[0].float()
        similarity = torch.cat([written @ query for written in _written_blocks(index.features, model, heads)])
    else:
        assert image is not None
        centre = compute_centre(index, model, heads)
        query = _written_on(model, image, heads) - centre
        blocks = _written_blocks(index.features, model, heads)
        similarity = torch.cat([F.cosine_similarity(written - centre, query) for written in blocks])
    best = similarity.topk(min(count, len(similarity)))
    positions = [index.kept[row] for row in best.indices.tolist()]
    names = index.source.names
    return [Hit(names[i], value, i) for i, value in zip(positions, best.values.tolist(), strict=True)]


def compute_centre(index: Index, model: Model, heads: Sequence[HeadId] | None) -> Float[Tensor, " d_embed"]:
    """The mean of what some heads wrote over an index: what all its images share says nothing of any of them.

    Zero where the images are few or hardly differ: what is left without their mean is then rounding, and an image's
    cosine with itself would be noise.
    """
    # A pass of its own: the mean must be known before any cosine from which it is taken off.
    total, squares = torch.zeros(model.tower.d_embed, dtype=torch.float64), 0.0
    for block in _written_blocks(index.features, model, heads):
        total += block.double().sum(0)
        squares += float(block.double().square().sum())
    mean = total / len(index.kept)
    spread = max(0.0, squares / len(index.kept) - float(mean @ mean)) ** 0.5
    if len(index.kept) < LEAST_TO_CENTRE or spread < LEAST_SPREAD * float(mean.norm()):
        return torch.zeros_like(mean).float()
    return mean.float()


@dataclass(frozen=True)
class Found:
    """The answer to one search.

    Attributes:
        heads: Those that were compared; none: the whole embedding.
        because: Why these heads are a poor guide, where the index says that few heads hold the concept; else empty.
    """

    heads: list[str]
    hits: list[Hit]
    because: str = ""


def run_retrieval(
    model: Model,
    images: str | Path | ImageSource,
    path: Path,
    *,
    text: str | None = None,
    image: Path | None = None,
    concept: str | None = None,
    heads: int | None = None,
    count: int = 10,
    sheet: Path | None = None,
    progress: Progress | None = None,
) -> Found:
    """What `clipedit retrieve` does: open or make the index, search, and draw the images on a sheet.

    Raises:
        ConceptError, ImageError, StatisticsError, RecipeError: As `open_index`, `choose_property_heads` and `retrieve`.
    """
    require_query(text, image)
    if text is not None:
        require_text_fits(model, text)
    known = load_concept(concept, model.folder) if concept else None
    # Before the index is made, which takes long; and then as its images are read.
    reference = open_image(image) if image is not None else None
    index = open_index(model, images, path, progress=progress)
    decoding = model.decoding(index.scan.exif, index.scan.decode)
    if image is not None and decoding != UPRIGHT:
        reference = open_image(image, decoding)
    chosen = choose_property_heads(index, model, known, heads=heads) if known else None
    hits = retrieve(index, model, text=text, image=reference, heads=chosen, count=count)
    if sheet is not None:
        pictures = [index.source.open(hit.position) for hit in hits]
        captions = [f"{hit.similarity:.3f} {hit.name}" for hit in hits]
        if reference is not None:
            pictures, captions = [reference, *pictures], ["searched for", *captions]
        with staged_file(sheet) as temporary:
            draw_sheet(pictures, captions, columns=min(5, len(pictures)), side=192).save(temporary, "PNG")
    return Found([str(head) for head in chosen or []], hits, _doubt(index, model, known) if known else "")


def _doubt(index: Index, model: Model, concept: Concept) -> str:
    try:
        found = judge_concept(index.scan, model, concept)
    except StatisticsError:
        # Too few images to tell, which is no reason not to search them.
        return ""
    return "" if found.verdict == "held" else f"{found.because}. The whole embedding, without --concept, may find more"


def compute_written(features: Features, model: Model, heads: Sequence[HeadId] | None) -> Float[Tensor, "image d_embed"]:
    """What some heads wrote, or the whole embedding, divided by `|z|`."""
    embedding = features.embedding.float()
    norm = embedding.norm(dim=1, keepdim=True)
    if heads is None:
        return embedding / norm
    layers = sorted({head.layer for head in heads})
    groups = [group for group in model.tower.groups(layers, mlps=False) if group.ids[0].kind == "head"]
    readouts = model.tower.compute_readouts(groups)
    total = torch.zeros_like(embedding)
    for head in heads:
        name = f"L{head.layer}.heads"
        total += features.groups[name][:, head.head].float() @ readouts[name][head.head].T.float()
    return total / norm


def _written_blocks(features: Features, model: Model, heads: Sequence[HeadId] | None) -> Iterator[Tensor]:
    """`compute_written`, `BLOCK` images at a time: memory does not grow with the index."""
    for start in range(0, len(features.embedding), BLOCK):
        rows = slice(start, start + BLOCK)
        groups = {name: group[rows] for name, group in features.groups.items()}
        yield compute_written(Features(groups, {}, features.final[rows], features.embedding[rows]), model, heads)


@torch.no_grad()
def _written_on(model: Model, image: Image.Image, heads: Sequence[HeadId] | None) -> Float[Tensor, "1 d_embed"]:
    layers = sorted({head.layer for head in heads or []})
    pixels = model.preprocess(image)[None].to(model.device)
    found = model.tower.collect_features(pixels, model.tower.groups(layers, mlps=False))
    # The index lies in the memory of the host, and what it is compared with must too.
    groups = {name: group.cpu() for name, group in found.groups.items()}
    return compute_written(Features(groups, {}, found.final.cpu(), found.embedding.cpu()), model, heads)
