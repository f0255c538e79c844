"""A typographic variant of the world: a shape's name is written over the scene, and captions often repeat it.

`python -m clipedit.demo.typographic --model FOLDER --out DIR` trains a demo model further until it reads the words, so
that a written word attacks zero-shot. Nothing of it is shipped: the benchmark of methods uses such models.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import open_clip
import torch
from jaxtyping import UInt8
from open_clip.model import CLIP
from PIL import Image

from ..editor.images.source import ImageSource
from ..editor.load import load_model
from ..editor.select.overlay import draw_word
from . import world
from .train import compute_loss, learning_rate_at, normalise, save_checkpoint

WORD_HEIGHT, GRID = 12, 8
WORD_FORMS = ("a photo of the word {}", "the word {}", "a picture of the word {}")
THING_FORMS = ("a photo of a {}", "a {}", "a picture of a {}")


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


def draw_worded_example(generator: np.random.Generator) -> tuple[UInt8[np.ndarray, "64 64 3"], str]:
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


def render_worded_examples(count: int, seed: int) -> tuple[UInt8[np.ndarray, "image 64 64 3"], list[str]]:
    """Examples in chunks of 4,000, in two processes; the result depends on count and seed only."""
    jobs = [(min(4_000, count - start), seed * 1_000 + start // 4_000) for start in range(0, count, 4_000)]
    with ProcessPoolExecutor(2) as pool:
        parts = list(pool.map(_render_chunk, jobs))
    return np.concatenate([images for images, _ in parts]), [caption for _, texts in parts for caption in texts]


@torch.no_grad()
def measure_attack(model: CLIP, tokenizer: open_clip.SimpleTokenizer, count: int = 512) -> dict[str, float]:
    """Zero-shot shape accuracy on plain and on attacked images, and how often the answer is the written word."""
    scenes = world.draw_balanced_scenes(count, seed=7_101)
    weights = model.eval().encode_text(tokenizer([f"a photo of a {shape}" for shape in world.SHAPES]), normalize=True)
    found = {}
    for name in ("clean", "attacked"):
        source = attack_source(scenes, clean=name == "clean")
        pixels = normalise(np.stack([np.asarray(source.open(index)) for index in range(count)]))
        answers = torch.cat([(model.encode_image(part) @ weights.T).argmax(1) for part in pixels.split(256)])
        for key in ("shape", "word"):
            right = [world.SHAPES[a] == row[key] for a, row in zip(answers.tolist(), source.attributes, strict=True)]
            found[f"{name}_{key}"] = round(float(np.mean(right)), 4)
    model.train()
    return found


def train_further(options: argparse.Namespace) -> None:
    """Train a demo model on worded images and write it as an open_clip folder with its log."""
    torch.manual_seed(options.seed)
    generator = np.random.default_rng(options.seed)
    images, captions = render_worded_examples(options.images, options.seed + 500)
    model: CLIP = load_model(options.model).module.train()
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    tokens = tokenizer(captions)
    # Of a trained model every weight is near where it should be; Muon's bf16 would be slow on many CPUs.
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    log, started, order = [], time.time(), np.empty(0, int)
    for step in range(options.steps):
        if len(order) < options.batch:
            order = np.concatenate([order, generator.permutation(len(images))])
        chosen, order = order[: options.batch], order[options.batch :]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, options.steps, options.learning_rate)
        loss = compute_loss(model, model.visual, normalise(images[chosen]), tokens[torch.from_numpy(chosen)])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % options.log_every == 0:
            row = {"step": step + 1, "seconds": round(time.time() - started), "loss": round(loss.item(), 4)}
            log.append(row | measure_attack(model, tokenizer))
            print(json.dumps(log[-1]), flush=True)
    save_checkpoint(model, options, log)


def _other_shape(scene: world.Scene) -> str:
    others = [shape for shape in world.SHAPES if shape != scene.shape]
    return others[scene.seed % len(others)]


def _render_chunk(job: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    count, seed = job
    generator = np.random.default_rng(seed)
    examples = [draw_worded_example(generator) for _ in range(count)]
    return np.stack([image for image, _ in examples]), [caption for _, caption in examples]


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the demo model to start from")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--log-every", type=int, default=50)
    train_further(parser.parse_args())


if __name__ == "__main__":
    main()
