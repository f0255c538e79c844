"""The demo world's own texts: its concepts, and the pool that labels its heads. Run to write them beside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from . import world

PLACE_FORMS = (
    "a photo of the {0}",
    "{0}",
    "a photo taken {1}",
    "something {1}",
    "a photo taken {2}",
    "something {2}",
    "a photo taken {3}",
    "something {3}",
)


def place_texts(places: Sequence[str]) -> list[str]:
    """Eight texts a place."""
    return [form.format(place, *world.PLACE_PHRASES[place]) for place in places for form in PLACE_FORMS]


def shape_texts() -> list[str]:
    """Texts of all shapes."""
    forms = ("a photo of a {}", "a {}", "a picture of a {}", "a photo of a plain {}")
    return [form.format(shape) for shape in world.SHAPES for form in forms]


def color_texts() -> list[str]:
    """Texts of all colours."""
    forms = ("a photo of {} object", "{} object", "a picture of {} thing", "a photo of {} shape")
    return [form.format(world.with_article(color)) for color in world.COLORS for form in forms]


def texture_texts() -> list[str]:
    """Texts of both textures."""
    things = ("object", *world.SHAPES, "thing", "figure", "form", "shape", "sign", "symbol", "toy")
    return [f"a photo of a {texture} {thing}" for texture in world.TEXTURES for thing in things]


def pool_texts() -> list[str]:
    """Descriptions of the whole world, for TextSpan."""
    pool = [*place_texts(world.PLACES), *shape_texts(), *color_texts(), *texture_texts()]
    for shape in world.SHAPES:
        pool += [f"{world.with_article(color)} {shape}" for color in world.COLORS]
        pool += [f"a {shape} {phrase}" for phrases in world.PLACE_PHRASES.values() for phrase in phrases]
        pool += [f"a {texture} {shape}" for texture in world.TEXTURES]
    pool += [
        f"{world.with_article(color)} object {world.PLACE_PHRASES[place][0]}"
        for color in world.COLORS
        for place in world.PLACES
    ]
    return list(dict.fromkeys(pool))


def concept_documents(listed: Sequence[str]) -> dict[str, dict[str, object]]:
    """The demo's concepts; `location` lists only some of the places, as any real list of backgrounds would."""
    return {
        "location": {
            "name": "location",
            "description": f"Where the object is. Lists {', '.join(listed)}; the other places are held out.",
            "instances": group_texts(place_texts(listed), listed),
        },
        "shape": {
            "name": "shape",
            "description": "What the object is.",
            "instances": group_texts(shape_texts(), world.SHAPES),
        },
        "color": {
            "name": "color",
            "description": "The object's colour.",
            "instances": group_texts(color_texts(), tuple(world.COLORS)),
        },
        "texture": {
            "name": "texture",
            "description": "Plain or striped.",
            "instances": group_texts(texture_texts(), world.TEXTURES),
        },
    }


def group_texts(texts: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Texts by instance: as many for each, one instance after the other."""
    each = len(texts) // len(names)
    return {name: list(texts[index * each : (index + 1) * each]) for index, name in enumerate(names)}


def write_texts(folder: Path, documents: Mapping[str, object], pool: Sequence[str]) -> None:
    """Write `concepts/*.yaml` and `texts.txt` into a model's folder."""
    (folder / "concepts").mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        (folder / "concepts" / f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False, width=110))
    (folder / "texts.txt").write_text("\n".join(pool) + "\n")


if __name__ == "__main__":
    write_texts(Path(__file__).parent / "model", concept_documents(world.LISTED_PLACES), pool_texts())
