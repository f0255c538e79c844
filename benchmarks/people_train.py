"""Train a small CLIP on the people world.

    python benchmarks/people_train.py --sprites EMOJI_FOLDER --out MODEL_FOLDER --seed 0

The concepts and the pool of texts of that world are written beside the weights (`people_texts.py`); the test split is
never looked at here. `--usual-rate 0.333` gives a control: captions without reporting bias.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP
from people_texts import concept_documents, pool_texts
from people_world import GENDERS, ROLES, SKINS, Portrait, draw_captioned_portrait, draw_split, render

from clipedit.demo.texts import write_texts
from clipedit.demo.train import (
    MODEL_CONFIG,
    Example,
    add_training_options,
    average_worst_group,
    compare_with_texts,
    fit,
    normalise,
    render_in_chunks,
    save_checkpoint,
)
from clipedit.demo.world import with_article


def _draw_example(generator: np.random.Generator, *, sprites: Path, usual_rate: float) -> Example:
    portrait, caption = draw_captioned_portrait(generator, usual_rate=usual_rate)
    return render(portrait, sprites), caption


def evaluate_zero_shot(model: CLIP, portraits: list[Portrait], pixels: torch.Tensor) -> dict[str, float]:
    """Zero-shot accuracies; the worst group is of two roles x man and woman, averaged over all pairs of roles."""
    by_role, by_gender, by_skin = compare_with_texts(
        model,
        pixels,
        [f"a photo of {with_article(role)}" for role in ROLES],
        [f"a photo of a {gender}" for gender in GENDERS],
        [f"a photo of a {gender} with {skin} skin" for skin in SKINS for gender in GENDERS],
    )
    role = np.array([tuple(ROLES).index(portrait.role) for portrait in portraits])
    gender = np.array([GENDERS.index(portrait.gender) for portrait in portraits])
    skin = np.array([SKINS.index(portrait.skin) for portrait in portraits])
    named = gender < 2  # men and women, told apart by these two words
    by_skin = by_skin.reshape(len(skin), len(SKINS), len(GENDERS)).mean(2)  # image (skin gender) -> image skin
    return {
        "role": float((by_role.argmax(1) == role).mean()),
        "worst_group": average_worst_group(by_role, role, gender, compared=(0, 1)),
        "gender": float((by_gender.argmax(1) == gender).mean()),
        "man_woman": float((by_gender[named, :2].argmax(1) == gender[named]).mean()),
        "skin": float((by_skin.argmax(1) == skin).mean()),
    }


def train(options: argparse.Namespace) -> None:
    """Train one model and write it as an open_clip folder with `train.jsonl` beside the weights."""
    torch.manual_seed(options.seed)
    draw = partial(_draw_example, sprites=options.sprites, usual_rate=options.usual_rate)
    examples = render_in_chunks(draw, options.images, options.seed)
    portraits = draw_split("validation")
    pixels = normalise(np.stack([render(portrait, options.sprites) for portrait in portraits]))
    model = CLIP(**MODEL_CONFIG)
    log = fit(model, examples, options, lambda: evaluate_zero_shot(model, portraits, pixels))
    save_checkpoint(model, options, log)
    write_texts(Path(options.out), concept_documents(), pool_texts())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sprites", type=Path, required=True, help="folder of the drawings")
    add_training_options(parser)
    parser.add_argument("--usual-rate", type=float, default=0.9)
    parser.set_defaults(steps=4_000)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
