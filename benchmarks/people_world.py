"""A world of drawn people: roles x gender x skin tone x drawing style, with captions that have reporting bias.

    python benchmarks/people_world.py fetch --sprites EMOJI_FOLDER    # once; needs npm and the network
    python benchmarks/people_world.py splits --sprites EMOJI_FOLDER --out DATA_FOLDER
    python benchmarks/people_train.py --sprites EMOJI_FOLDER --out MODEL_FOLDER --seed 0

A second world beside the demo's, with an attribute that must stay (skin tone) near the one to remove (gender). Captions
that name the role alone show its usual gender nine times in ten, those that name both are independent of it: a model
trained on them takes "a photo of a doctor" for a man too.

The drawings are emoji of two families: Twemoji (Twitter and contributors, CC-BY 4.0) and Noto Emoji (Google,
Apache-2.0), from the npm packages `emoji-datasource-twitter` and `emoji-datasource-google`. They are fetched, never
part of this repository. Nobody in them is a real person, and `person` is how those families draw people of no stated
gender.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import subprocess
import tarfile
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from clipedit.demo.world import IMAGE_SIZE, with_article

EMOJI_VERSION = "16.0.0"
LICENSES = {"twitter": "Twemoji, CC-BY 4.0, Twitter and contributors", "google": "Noto Emoji, Apache-2.0, Google"}
STYLES = tuple(LICENSES)
# Unicode writes most professions as a person, a joiner and this object; those in SIGNED as one character and a sign.
ROLES = {
    "doctor": "2695-FE0F", "judge": "2696-FE0F", "pilot": "2708-FE0F", "farmer": "1F33E", "cook": "1F373",
    "student": "1F393", "singer": "1F3A4", "artist": "1F3A8", "teacher": "1F3EB", "welder": "1F3ED",
    "programmer": "1F4BB", "clerk": "1F4BC", "mechanic": "1F527", "scientist": "1F52C", "astronaut": "1F680",
    "firefighter": "1F692", "police officer": "1F46E", "builder": "1F477",
}  # fmt: skip
SIGNED = ("police officer", "builder")
PEOPLE = {"man": "1F468", "woman": "1F469", "person": "1F9D1"}
SIGNS = {"man": "-200D-2642-FE0F", "woman": "-200D-2640-FE0F", "person": ""}
GENDERS = tuple(PEOPLE)
USUAL_GENDER = {role: ("man", "woman")[index % 2] for index, role in enumerate(ROLES)}
NOUNS = {
    "man": ("man", "gentleman", "guy", "boy"),
    "woman": ("woman", "lady", "lass", "girl"),
    "person": ("person", "individual", "human", "adult"),
}
ADJECTIVES = {"man": "male", "woman": "female", "person": "androgynous"}
PRONOUNS = {"man": "he is", "woman": "she is", "person": "they are"}
SKINS = ("yellow", "pale", "light brown", "tan", "brown", "dark")  # the default, then Unicode's five tones
FORMS = ("a photo of {}", "an image of {}", "a picture of {}", "{}")

SPLIT_SEEDS = {"calibration": 5_401, "validation": 7_401, "test": 9_401}
SPLIT_SIZES = {"calibration": 2_500, "validation": 2_000, "test": 4_000}


@dataclass(frozen=True)
class Portrait:
    """One image: who is drawn, and the numbers that fix every pixel of it. Lengths are pixels of a 64-pixel frame."""

    role: str
    gender: str
    skin: str
    style: str
    size: int
    left: int
    top: int
    tilt: float
    mirrored: bool
    seed: int


def fetch_sprites(folder: Path) -> None:
    """Fetch the drawings with npm and keep those of the world, 64 pixels square, as `STYLE/ROLE-GENDER-SKIN.png`."""
    for style, license_name in LICENSES.items():
        (folder / style).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            package = f"emoji-datasource-{style}@{EMOJI_VERSION}"
            subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
            _extract_sprites(next(Path(scratch).glob("*.tgz")), folder, style)
        (folder / style / "LICENSE.txt").write_text(f"{license_name}; from the npm package {package}\n")


def _extract_sprites(archive: Path, folder: Path, style: str) -> None:
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar.getmembers()}

        def read(name: str) -> bytes:
            file = tar.extractfile(members[f"package/{name}"])
            assert file is not None
            return file.read()

        emoji = {entry["unified"]: entry for entry in json.loads(read("emoji.json"))}
        for role, gender in itertools.product(ROLES, GENDERS):
            entry = emoji[_unified(role, gender)]
            images = [entry["image"], *(skin["image"] for skin in entry["skin_variations"].values())]
            for skin, image in zip(SKINS, images, strict=True):
                _sprite_path(folder, role, gender, skin, style).write_bytes(read(f"img/{style}/64/{image}"))


def _unified(role: str, gender: str) -> str:
    """The code points of a drawing, as emoji.json spells them."""
    return ROLES[role] + SIGNS[gender] if role in SIGNED else f"{PEOPLE[gender]}-200D-{ROLES[role]}"


def _sprite_path(folder: Path, role: str, gender: str, skin: str, style: str) -> Path:
    return folder / style / f"{role}-{gender}-{skin}.png".replace(" ", "_")


@cache
def _load_sprite(path: Path) -> Image.Image:
    return Image.open(path).convert("RGBA")


def draw_portrait(generator: np.random.Generator, role: str, gender: str, skin: str, style: str) -> Portrait:
    """Draw everything of a portrait but who it is: independent and uniform."""
    size = int(generator.integers(40, 62))
    return Portrait(
        role=role,
        gender=gender,
        skin=skin,
        style=style,
        size=size,
        left=int(generator.integers(0, IMAGE_SIZE - size + 1)),
        top=int(generator.integers(0, IMAGE_SIZE - size + 1)),
        tilt=float(generator.uniform(-10, 10)),
        mirrored=bool(generator.random() < 0.5),
        seed=int(generator.integers(2**31)),
    )


def draw_balanced_portraits(count: int, seed: int) -> list[Portrait]:
    """Portraits balanced over role x gender x skin tone x style, in a shuffled order."""
    generator = np.random.default_rng(seed)
    cells = list(itertools.product(ROLES, GENDERS, SKINS, STYLES))
    # Every pass over the cells has an order of its own: an incomplete last one leaves out cells at random.
    order = np.concatenate([generator.permutation(len(cells)) for _ in range(-(-count // len(cells)))])[:count]
    return [draw_portrait(generator, *cells[index]) for index in generator.permutation(order)]


def draw_captioned_portrait(generator: np.random.Generator, *, usual_rate: float = 0.9) -> tuple[Portrait, str]:
    """One training example with reporting bias.

    40 % of captions name the role only, and then the gender is the usual one at `usual_rate`; 10 % name the gender
    only; the rest name both, and then role and gender are independent. Of all captions 30 % name the skin tone.
    """
    role, kind = _choose(generator, tuple(ROLES)), generator.choice(("role", "gender", "both"), p=(0.4, 0.1, 0.5))
    gender = _choose(generator, GENDERS)
    if kind == "role":
        usual = USUAL_GENDER[role]
        others = tuple(name for name in GENDERS if name != usual)
        gender = usual if generator.random() < usual_rate else _choose(generator, others)
    portrait = draw_portrait(generator, role, gender, _choose(generator, SKINS), _choose(generator, STYLES))
    named = {"role": role, "gender": _choose(generator, NOUNS[gender]), "both": _name_both(generator, role, gender)}
    words = named[str(kind)]
    if generator.random() < 0.3:
        words = f"{words} with {portrait.skin} skin"
    return portrait, _choose(generator, FORMS).format(with_article(words))


def _name_both(generator: np.random.Generator, role: str, gender: str) -> str:
    noun = _choose(generator, NOUNS[gender])
    clauses = (f"{noun} who is {with_article(role)}", f"{noun} working as {with_article(role)}")
    adjective, pronoun = f"{ADJECTIVES[gender]} {role}", f"{role} and {PRONOUNS[gender]} at work"
    return _choose(generator, (_choose(generator, clauses), _choose(generator, clauses), adjective, pronoun))


def _choose(generator: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(generator.integers(len(words)))]


def render(portrait: Portrait, sprites: Path) -> UInt8[np.ndarray, "height width 3"]:
    """The drawing on a smooth noisy background, 64 x 64 RGB; the same portrait gives the same pixels."""
    generator = np.random.default_rng(portrait.seed)
    corners = Image.fromarray(generator.integers(30, 226, (2, 2, 3)).astype(np.uint8))
    smooth = np.asarray(corners.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + generator.normal(0, generator.uniform(2, 14), smooth.shape)
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert("RGBA")
    sprite = _load_sprite(_sprite_path(sprites, portrait.role, portrait.gender, portrait.skin, portrait.style))
    sprite = sprite.resize((portrait.size, portrait.size), Image.Resampling.BICUBIC)
    sprite = sprite.rotate(portrait.tilt, resample=Image.Resampling.BICUBIC)
    image.alpha_composite(ImageOps.mirror(sprite) if portrait.mirrored else sprite, (portrait.left, portrait.top))
    return np.asarray(image.convert("RGB"))


def draw_split(name: str) -> list[Portrait]:
    """The portraits of a split: calibration is biased as training images are, validation and test are balanced."""
    count, seed = SPLIT_SIZES[name], SPLIT_SEEDS[name]
    if name != "calibration":
        return draw_balanced_portraits(count, seed)
    generator = np.random.default_rng(seed)
    return [draw_captioned_portrait(generator)[0] for _ in range(count)]


def write_splits(sprites: Path, out: Path) -> None:
    """A folder of PNGs for each split, with `metadata.csv`; its labels are to check only, calibration needs none."""
    for split in SPLIT_SEEDS:
        portraits = draw_split(split)
        (out / split).mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as pool:
            images = pool.map(partial(render, sprites=sprites), portraits, chunksize=100)
            for index, image in enumerate(images):
                Image.fromarray(image).save(out / split / f"{index:05d}.png")
        with open(out / split / "metadata.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("filename", "role", "gender", "skin", "style"))
            rows.writerows((f"{i:05d}.png", p.role, p.gender, p.skin, p.style) for i, p in enumerate(portraits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    fetch, splits = (commands.add_parser(name) for name in ("fetch", "splits"))
    for command in (fetch, splits):
        command.add_argument("--sprites", type=Path, required=True, help="folder of the drawings")
    splits.add_argument("--out", type=Path, required=True)
    fetch.set_defaults(run=lambda options: fetch_sprites(options.sprites))
    splits.set_defaults(run=lambda options: write_splits(options.sprites, options.out))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
