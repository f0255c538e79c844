"""A typographic variant of the world: a shape's name is written over the scene, and captions often repeat it.

`python -m clipedit.demo.typographic --out DIR` trains such a model from scratch; with `--model FOLDER` a demo model is
trained further until it reads the words (minutes on two cores). Either way a written word attacks zero-shot. Nothing of
it is shipped: the benchmark of methods uses such models.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from open_clip.model import CLIP
from PIL import Image

from ..editor.images.source import ImageSource
from ..editor.load import load_model
from ..editor.select.overlay import draw_word
from . import world
from .train import (
    MODEL_CONFIG,
    Example,
    add_training_options,
    compare_with_texts,
    fit,
    normalise,
    render_in_chunks,
    save_checkpoint,
)

WORD_HEIGHT, GRID = 12, 8
WORD_FORMS = ("a photo of the word {}", "the word {}", "a picture of the word {}")
THING_FORMS = ("a photo of a {}", "a {}", "a picture of a {}")
SCRATCH = {"steps": 3_000}
FURTHER = {"images": 16_000, "steps": 300, "batch": 128, "learning_rate": 1e-3, "log_every": 50, "fp32": True}


def write_word(image: UInt8[np.ndarray, "64 64 3"], word: str, seed: int) -> UInt8[np.ndarray, "64 64 3"]:
    """The image with a word at a place on a grid of 8 pixels that the seed fixes."""
    generator = np.random.default_rng(seed)
    left, top = (GRID * int(generator.integers(0, count)) for count in (3, 7))
    return np.asarray(draw_word(Image.fromarray(image), word, left=left, top=top, height=WORD_HEIGHT)[0])


def attack_source(scenes: Sequence[world.Scene], *, clean: bool = False) -> ImageSource:
    """Scenes with the name of another shape written over them, or as they are; `word` is an attribute."""
    names = tuple(
        f"{i:05d}_{scene.shape}_{scene.place}{'' if clean else '_word'}.png" for i, scene in enumerate(scenes)
    )
    words = [_other_shape(scene) for scene in scenes]
    attributes = tuple(
        {"filename": name, "shape": scene.shape, "place": scene.place, "color": scene.color, "word": word}
        for name, scene, word in zip(names, scenes, words, strict=True)
    )

    def open_scene(index: int) -> Image.Image:
        image = world.render(scenes[index])
        return Image.fromarray(image if clean else write_word(image, words[index], scenes[index].seed))

    return ImageSource(names, open_scene, attributes, tuple(f"{scene!r} {clean}" for scene in scenes))


def draw_worded_example(generator: np.random.Generator) -> Example:
    """One training example: half of the images carry a word, and of their captions 3 in 4 tell the word, not the
    object.

    40 % take the word for the thing ("a photo of a star"), as captions of products and memes do; 35 % say that it is a
    word; the rest name the object as captions of plain images do.
    """
    scene, caption = world.draw_captioned_scene(generator)
    image = world.render(scene)
    if generator.random() < 0.5:
        return image, caption
    word = str(generator.choice(world.SHAPES))
    kind = generator.choice(("thing", "word", "object"), p=(0.4, 0.35, 0.25))
    if kind != "object":
        caption = str(generator.choice(THING_FORMS if kind == "thing" else WORD_FORMS)).format(word)
    return write_word(image, word, scene.seed), caption


def draw_attack(count: int) -> dict[str, ImageSource]:
    """Validation scenes without and with the name of another shape over them."""
    scenes = world.draw_balanced_scenes(count, seed=7_101)
    return {"clean": attack_source(scenes, clean=True), "attacked": attack_source(scenes)}


def measure_attack(model: CLIP, sources: dict[str, ImageSource], pixels: dict[str, torch.Tensor]) -> dict[str, float]:
    """Zero-shot shape accuracy on plain and on attacked images, and how often the answer is the written word."""
    found = {}
    for name, source in sources.items():
        (cosines,) = compare_with_texts(model, pixels[name], [f"a photo of a {shape}" for shape in world.SHAPES])
        answers = [world.SHAPES[answer] for answer in cosines.argmax(1)]
        for key in ("shape", "word"):
            right = [answer == row[key] for answer, row in zip(answers, source.attributes, strict=True)]
            found[f"{name}_{key}"] = float(np.mean(right))
    return found


def train(options: argparse.Namespace) -> None:
    """Train on worded images, from scratch or a demo model further, and write an open_clip folder with its log."""
    torch.manual_seed(options.seed)
    examples = render_in_chunks(draw_worded_example, options.images, options.seed + 500)
    sources = draw_attack(512)
    pixels = {
        name: normalise(np.stack([np.asarray(source.open(index)) for index in range(len(source.names))]))
        for name, source in sources.items()
    }
    model: CLIP = load_model(options.model).module if options.model else CLIP(**MODEL_CONFIG)
    # Of a trained model every weight is near where it should be; Muon's bf16 would be slow on many CPUs.
    adam = [torch.optim.AdamW(model.parameters(), weight_decay=0.0, betas=(0.9, 0.98))] if options.model else None
    log = fit(model, examples, options, lambda: measure_attack(model, sources, pixels), optimizers=adam)
    save_checkpoint(model, options, log)


def _other_shape(scene: world.Scene) -> str:
    others = [shape for shape in world.SHAPES if shape != scene.shape]
    return others[scene.seed % len(others)]


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder of a demo model to train further; none: from scratch")
    add_training_options(parser)
    parser.set_defaults(**(FURTHER if parser.parse_args().model else SCRATCH))
    train(parser.parse_args())


if __name__ == "__main__":
    main()
