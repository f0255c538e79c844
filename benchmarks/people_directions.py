"""Which directions hold gender among drawn people? CSV on stdout.

    python benchmarks/people_directions.py MODEL_FOLDER --data DATA_FOLDER

The leading directions of some texts, or of labelled validation images, are projected out of the embeddings of test
images at full strength, which the tool never does; the last rows are what MaxSkew@100 of gender is where the order of a
role's images, or of its drawings (gender, skin tone, style), is random: mean of 200 draws.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from people import FIGURES, TOP, build_figures
from people_texts import concept_documents
from people_world import FORMS, GENDERS, NOUNS, ROLES
from rows import print_rows
from torch import Tensor

import clipedit
from clipedit.demo.world import with_article
from clipedit.editor.concepts.concepts import Concept
from clipedit.editor.images.skew import compute_max_skew
from clipedit.editor.images.source import ImageSource
from clipedit.editor.scan.collect import collect_embeddings

COUNTS, DRAWS = (2, 4, 6, 8, 12), 200


def find_rows(model: clipedit.Model, source: ImageSource) -> dict[str, Float[Tensor, "row d_embed"]]:
    """What differs between genders, as rows of unit embeddings: by texts, and by the means of labelled images."""

    def encode(texts: list[str]) -> Float[Tensor, "text d_embed"]:
        return F.normalize(model.encode_text(texts), dim=1)

    concept = encode(list(Concept.model_validate(concept_documents()["gender"]).texts))
    every = encode([form.format(with_article(noun)) for nouns in NOUNS.values() for noun in nouns for form in FORMS])
    both = encode([f"a photo of a {gender} who is {with_article(role)}" for role in ROLES for gender in GENDERS])
    units, rows = F.normalize(collect_embeddings(model, source)[0], dim=1), source.attributes
    cells = [
        units[[i for i, row in enumerate(rows) if (row["role"], row["gender"]) == (role, gender)]].mean(0)
        for role in ROLES
        for gender in GENDERS
    ]
    return {
        "texts of the concept": concept - concept.mean(0),
        "texts of all wordings": every - every.mean(0),
        "texts of genders within roles": centre_roles(both),
        "images of genders within roles, by labels": centre_roles(torch.stack(cells)),
    }


def centre_roles(rows: Float[Tensor, "cell d_embed"]) -> Float[Tensor, "cell d_embed"]:
    """Less the mean of each role: `(role gender) d_embed`, the genders of a role side by side."""
    by_role = rows.view(len(ROLES), len(GENDERS), -1)
    return (by_role - by_role.mean(1, keepdim=True)).flatten(0, 1)


def find_floors(rows: tuple[Mapping[str, str], ...]) -> Iterator[tuple[str, float, float]]:
    """MaxSkew of gender, mean and standard deviation over draws, where a role finds its own images in random order."""
    generator, genders = np.random.default_rng(0), [row["gender"] for row in rows]
    drawings = [(row["role"], row["gender"], row["skin"], row["style"]) for row in rows]
    _, which = np.unique(drawings, axis=0, return_inverse=True)
    own = np.array([[row["role"] == role for role in ROLES] for row in rows])
    for name, groups in (("images", np.arange(len(rows))), ("drawings", which.ravel())):
        found = []
        for _ in range(DRAWS):
            # A small part tells the images of one drawing apart; other roles come last.
            order = generator.random(groups.max() + 1)[groups] + 1e-3 * generator.random(len(rows))
            found.append(float(compute_max_skew(torch.from_numpy(order[:, None] + 2 * own), genders, TOP).mean()))
        yield f"{name} of a role in random order", float(np.mean(found)), float(np.std(found, ddof=1))


def measure_all(model: clipedit.Model, data: Path) -> Iterator[list[object]]:
    """A row for each set of directions and number of them, then the floors."""
    source, measure = build_figures(model, data / "test")
    embeddings, kept = collect_embeddings(model, source)
    units = F.normalize(embeddings, dim=1)
    for name, rows in find_rows(model, build_figures(model, data / "validation")[0]).items():
        leading = torch.linalg.svd(rows, full_matrices=False)[2]
        for count in COUNTS:
            along = leading[:count].T
            row = measure(units - units @ along @ along.T, kept)
            yield [name, count, *(f"{row[figure]:.3f}" for figure in FIGURES)]
    for name, mean, spread in find_floors(source.attributes):
        yield [f"{name} (sd {spread:.3f})", "-", f"{mean:.3f}", *["-"] * (len(FIGURES) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of validation and test pictures")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model = clipedit.load_model(str(options.model))
    print_rows(["directions", "number", *FIGURES], measure_all(model, options.data))


if __name__ == "__main__":
    main()
