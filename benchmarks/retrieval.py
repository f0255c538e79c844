"""Retrieval by one property on the demo world: precision at 10 of the concept's own heads, beside the whole embedding.

    python benchmarks/retrieval.py --seed 7101               # every number of heads: to choose the default of --heads
    python benchmarks/retrieval.py --seed 9101 --heads 4     # reported

Prints Markdown. A query is every image of the split in turn (itself not counted), or one text per value; right is an
image of the same value. Heads are ranked by the index's own statistics and the shipped concepts, as `clipedit retrieve`
does; the control takes as many heads at random from the same layers. Chance is one in the number of values.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F

import clipedit
from clipedit.demo import world
from clipedit.editor.components import Features, HeadId
from clipedit.editor.concepts.concepts import load_concept
from clipedit.editor.concepts.queries import encode_queries
from clipedit.editor.concepts.scores import score_heads
from clipedit.editor.images.demo import render_source
from clipedit.editor.images.source import ImageSource
from clipedit.editor.look.retrieve import compute_written
from clipedit.editor.look.spatial import head_ids
from clipedit.editor.scan.collect import collect_features
from clipedit.editor.select.plan import select_top_heads

# By concept: the label's column, and the text of a value.
PROPERTIES = {
    "color": ("color", "a {} object", tuple(world.COLORS)),
    "location": ("place", "a photo of the {}", world.PLACES),
    "shape": ("shape", "a photo of a {}", world.SHAPES),
}
COUNTS, BEST, DRAWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32), 10, 10


def precision(
    model: clipedit.Model, features: Features, labels: torch.Tensor, texts: torch.Tensor, heads: Sequence[HeadId] | None
) -> tuple[float, float]:
    """Precision at 10 by reference image and by text, as `retrieve` ranks."""
    written = compute_written(features, model, heads)
    centred = F.normalize(written - written.mean(0), dim=1)
    found = []
    for start in range(0, len(labels), 512):
        block = centred[start : start + 512] @ centred.T
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = -2.0
        best = block.topk(BEST, dim=1).indices
        found.append((labels[best] == labels[start : start + 512, None]).float().mean(1))
    by_text = (written @ texts.to(written).T).topk(BEST, dim=0).indices
    right = (labels[by_text] == torch.arange(len(texts))).float().mean()
    return float(torch.cat(found).mean()), float(right)


def draw_random(model: clipedit.Model, count: int, draw: int) -> list[HeadId]:
    heads = head_ids(model, range(max(0, model.tower.n_layers - 4), model.tower.n_layers))
    chosen = torch.randperm(len(heads), generator=torch.Generator().manual_seed(1000 * count + draw))[:count]
    return [heads[index] for index in chosen.tolist()]


def label_of(source: ImageSource, column: str, values: Sequence[str], kept: Sequence[int]) -> torch.Tensor:
    return torch.tensor([values.index(source.attributes[index][column]) for index in kept])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=7_101)
    parser.add_argument("--heads", type=int, action="append")
    options = parser.parse_args()
    model = clipedit.load_model("demo")
    source = render_source(world.draw_balanced_scenes(options.images, options.seed))
    statistics = clipedit.scan(model, source, workers=0)
    features, kept = collect_features(model, source, layers=statistics.layers)
    print("| property | heads | by image | random heads | by text | random heads |\n|---|---|---|---|---|---|")
    for name, (column, form, values) in PROPERTIES.items():
        labels = label_of(source, column, values, kept)
        texts = encode_queries(model, [form.format(value) for value in values])
        scores = score_heads(statistics, model, concept=load_concept(name, model.folder))
        whole = precision(model, features, labels, texts, None)
        print(f"| {name} | whole embedding | {whole[0]:.3f} | | {whole[1]:.3f} | |")
        for count in options.heads or COUNTS:
            chosen = select_top_heads(scores, count)
            own = precision(model, features, labels, texts, chosen)
            draws = [precision(model, features, labels, texts, draw_random(model, count, d)) for d in range(DRAWS)]
            control = [sum(values) / DRAWS for values in zip(*draws, strict=True)]
            row = f"| {name} | {count} | {own[0]:.3f} | {control[0]:.3f} | {own[1]:.3f} | {control[1]:.3f} |"
            print(row, flush=True)
            if options.heads:
                print(f"  {name}: {', '.join(map(str, chosen))}")


if __name__ == "__main__":
    main()
