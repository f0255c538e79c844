"""Is a concept that nobody wrote down found again? `benchmarks/discovery.py [MODEL...]`, CSV on stdout.

`location` is taken out of the library, on models of the demo's world: `demo`, and folders of models trained apart. One
row for each candidate of `audit --discover`, beside the edit of `location` itself (as the tool chooses it, listing half
of the places) and the unedited model, measured on a labelled split. Then nothing is taken out: what is found is false.

Pools of texts: `own`, the model's, which names every place; `listed`, the same without the texts of places that
`location` does not list, so that both know equally much; `general`, the shipped one, made without the demo in mind.
Nothing here is fitted to labels: they are read to say what a candidate is worth.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from methods import PLACE_SPLITS, location_of
from rows import print_rows
from selectivity import FIGURES, embed, show

from clipedit.demo.texts import place_texts
from clipedit.demo.world import PLACES, SHAPES
from clipedit.editor.components import HeadId
from clipedit.editor.concepts.class_weights import compute_class_weights
from clipedit.editor.concepts.concepts import Concept, plain_words
from clipedit.editor.concepts.queries import encode_unit
from clipedit.editor.images.demo import test_source, validation_source
from clipedit.editor.images.texts import load_texts
from clipedit.editor.load import load_model
from clipedit.editor.measure.demo_measure import SHAPE_TEMPLATES, build_demo_measure
from clipedit.editor.scan.collect import collect_features
from clipedit.editor.scan.scan import scan
from clipedit.editor.select.amounts import choose_for
from clipedit.editor.select.choice import Choice
from clipedit.editor.select.discovery.candidates import Discovery
from clipedit.editor.select.discovery.discover import search_concepts
from clipedit.editor.select.discovery.instances import Pool
from clipedit.editor.select.head_subsets import removed_by_both
from clipedit.editor.select.whose_heads import HeldConcepts, Measured, measure

TARGET = "location"
# What was searched and what a row is.
SEARCH = ("taken out", "pool", "classes", "row", "name", "from", "candidates", "selectivity")
COLUMNS = (
    "model",
    "listed places",
    "split",
    *SEARCH,
    "texts",
    "texts of places",
    "places named",
    "held-out places named",
    "heads",
    "heads of location among them",
    "heads of location",
    "strength",
    "removed along listed places",
    "removed along held-out places",
    *(figure.replace("_", " ") for figure in FIGURES),
)


def names_place(text: str, places: Sequence[str] = PLACES) -> bool:
    """Whether a text has the word of a place."""
    return bool(set(plain_words(text).split()) & set(places))


@dataclass
class Bench:
    """A model, what its heads hold, and the images that say what an edit is worth."""

    known: HeldConcepts
    split: str

    def __post_init__(self) -> None:
        self.source = test_source() if self.split == "test" else validation_source()
        self.features, self.kept = collect_features(self.known.model, self.source, layers=(), batch_size=256)
        self.without = {name: one for name, one in self.known.library.items() if name != TARGET}
        model = self.known.model
        self.weights = compute_class_weights(model, SHAPES, SHAPE_TEMPLATES).double()
        # What is found with all texts does not depend on which places `location` lists.
        self.found = {
            (TARGET, pool, classes): self.search(self.without, self.pool(pool), classes)
            for pool, classes in (("own", "no"), ("own", "yes"), ("general", "no"))
        }

    def search(self, library: Mapping[str, Measured], pool: Pool, classes: str = "no") -> Discovery:
        return search_concepts(self.known, library, pool, classes=self.weights if classes == "yes" else None)

    def pool(self, kind: str, unnamed: Sequence[str] = ()) -> Pool:
        """Texts that heads may be named by, without those of some places."""
        model = self.known.model
        texts = load_texts() if kind == "general" else load_texts(model_folder=model.folder)
        texts = tuple(text for text in texts if not names_place(text, unnamed))
        return Pool(texts, encode_unit(model, texts))


@dataclass
class Judge:
    """What edits are worth where `location` lists one half of the places."""

    bench: Bench
    places: str

    def __post_init__(self) -> None:
        self.known, self.listed = self.bench.known, PLACE_SPLITS[self.places]
        self.location = location_of(self.listed)
        self.held_out = [place for place in PLACES if place not in self.listed]
        self.measure = build_demo_measure(self.known.model, self.bench.source, listed=self.listed)
        self.library = self.bench.without | {TARGET: measure(self.known.probe, self.location)}
        self.target = choose_for(self.known, self.location, "distilled", library=self.library)

    def taken(self, heads: Sequence[HeadId]) -> list[int]:
        return [self.known.probe.subsets.heads.index(head) for head in heads]

    def removed(self, concept: Concept, edit: Choice, places: Sequence[str]) -> float:
        """Share of the variance along some places that an edit removes, in closed form."""
        probe, model = self.known.probe, self.known.model
        mean = encode_unit(model, place_texts(PLACES)).mean(0)
        rows = torch.stack([encode_unit(model, place_texts([place])).mean(0) - mean for place in places])
        span = probe.directions(encode_unit(model, concept.texts))
        directions = torch.nn.functional.normalize(rows, dim=1).T
        return removed_by_both(probe.subsets, directions, self.taken(edit.heads), span, edit.output_strength)

    def figures(self, concept: Concept, edit: Choice) -> list[str]:
        """What an edit is, and what it does."""
        probe = self.known.probe
        span = probe.directions(encode_unit(self.known.model, concept.texts))
        edited = embed(probe, self.bench.features.final, self.taken(edit.heads), span, edit.output_strength)
        found = self.measure(edited, self.bench.kept)
        removed = [show(self.removed(concept, edit, places)) for places in (self.listed, self.held_out)]
        shared = len(set(edit.heads) & set(self.target.heads))
        heads = [len(edit.heads), shared, len(self.target.heads), show(edit.output_strength)]
        return [*map(str, heads), *removed, *(show(found[figure]) for figure in FIGURES)]

    def describe(self, concept: Concept) -> list[str]:
        """What a concept's texts name."""
        named = [text for text in concept.texts if names_place(text)]
        places = {place for place in PLACES for text in concept.texts if names_place(text, [place])}
        return [str(len(concept.texts)), str(len(named)), str(len(places)), str(len(places & set(self.held_out)))]

    def rows(self, found: Discovery) -> Iterator[list[str]]:
        """A row for each candidate, or one that says that there is none."""
        count = str(len(found.candidates))
        if not found.candidates:
            yield ["none", "none", "none", count, *["none"] * (len(COLUMNS) - 10)]
        for number, one in enumerate(found.candidates, 1):
            said = [f"candidate {number}", one.concept.name, one.source, count, show(one.selectivity.value)]
            yield [*said, *self.describe(one.concept), *self.figures(one.concept, one.edit)]


def measure_model(name: str, split: str) -> Iterator[list[str]]:
    """The rows of one model."""
    model = load_model(name)
    bench = Bench(HeldConcepts(scan(model, "demo", batch_size=128), model), split)
    for places in PLACE_SPLITS:
        judge = Judge(bench, places)
        head, own = [Path(name).name, places, split], judge.location
        nothing = Choice((), 0.0, judge.target.weighed[0], ())
        for row, edit in (("unedited", nothing), (TARGET, judge.target)):
            said = ["nothing", "none", "no", row, row, "none", "0", show(judge.library[TARGET].selectivity.value)]
            yield [*head, *said, *judge.describe(own), *judge.figures(own, edit)]
        found = bench.found | {
            (TARGET, "listed", "no"): bench.search(bench.without, bench.pool("own", judge.held_out)),
            ("nothing", "own", "yes"): bench.search(judge.library, bench.pool("own"), "yes"),
            ("nothing", "general", "yes"): bench.search(judge.library, bench.pool("general"), "yes"),
        }
        for how, discovery in found.items():
            yield from ([*head, *how, *row] for row in judge.rows(discovery))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["demo"])
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    options = parser.parse_args()
    print_rows(COLUMNS, (row for name in options.models for row in measure_model(name, options.split)))


if __name__ == "__main__":
    main()
