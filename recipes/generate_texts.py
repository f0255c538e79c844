"""Write `texts/general.txt`: the pool of general descriptions that TextSpan labels heads with.

Subjects, places, properties and styles are combined in a fixed order, then thinned evenly; no randomness.
Run: `python -m clipedit.recipes.generate_texts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..editor.concepts.concepts import library_folder, list_concepts, load_concept

TARGET = 3_600
SUBJECTS = """a dog|a cat|a horse|a bird|a fish|a bear|a butterfly|a herd of sheep|a man|a woman|a child|a baby
|an old man|an old woman|a crowd|a couple|a family|a musician|a runner|a swimmer|a worker|a chef|a doctor|a soldier
|a car|a bus|a train|a boat|an airplane|a bicycle|a motorcycle|a bridge|a tower|a house|a castle|a church|a skyscraper
|a window|a door|a staircase|a chair|a table|a bed|a lamp|a clock|a book|a computer|a phone|a camera|a guitar|a piano
|a ball|a hat|a shoe|a dress|a bag|a ring|a bottle|a cup|a plate of food|a cake|a loaf of bread|a bowl of fruit
|a flower|a tree|a leaf|a mushroom|a rock|a shell|a cloud|a star|a fire|a fountain|a statue|a painting|a flag|a map
|a toy|a robot|a mask""".replace("\n", "").split("|")
SETTINGS = """in a forest|on a beach|in the desert|in the snow|in the mountains|on a lake|under water|in the sky
|in a city street|in a garden|on a farm|in a kitchen|in a bedroom|in an office|in a museum|in a stadium|at night
|at sunset|in the rain|in the fog|in summer|in winter|in front of a white background|in front of a black background
|behind a fence|next to a window|on a wooden table|on the grass|on a stage|in the dark""".replace("\n", "").split("|")
STYLES = """a close-up of {}|a blurry photo of {}|a black and white photo of {}|a drawing of {}|a painting of {}
|a photo of the back of {}|an aerial view of {}|a silhouette of {}|a reflection of {}|a vintage photo of {}
|a cartoon of {}|a photo of many copies of {}|an image of {} with text over it|a detail of {}
|a photo of {} in bright colors|a photo of {} in pastel colors""".replace("\n", "").split("|")
IMPRESSIONS = """peaceful|chaotic|elegant|playful|mysterious|gloomy|cheerful|dramatic|romantic|nostalgic|modern
|ancient|rural|urban|industrial|natural|artificial|crowded|empty|symmetrical|abstract|minimal|ornate|warm|cold|bright
|dark|soft|sharp|colorful|monochrome|festive|sacred|dangerous|cozy|luxurious|humble|fast|still|giant|tiny""".replace(
    "\n", ""
).split("|")
NOUNS = [
    "scene",
    "landscape",
    "portrait",
    "building",
    "interior",
    "pattern",
    "object",
    "animal",
    "moment",
    "texture",
    "view",
    "composition",
]


def generate_texts() -> list[str]:
    """At least 3,000 different descriptions, in a fixed order."""
    fixed = list(dict.fromkeys(text for concept in _library_texts() for text in concept))
    combined = list(dict.fromkeys(_combinations()))
    wanted = TARGET - len(fixed)
    thinned = [combined[i * len(combined) // wanted] for i in range(wanted)]
    return list(dict.fromkeys([*fixed, *thinned]))


def _library_texts() -> Iterator[tuple[str, ...]]:
    for name in sorted(list_concepts()):
        yield load_concept(name).texts


def _combinations() -> Iterator[str]:
    for subject in SUBJECTS:
        yield from (f"{subject} {setting}" for setting in SETTINGS)
        yield from (style.format(subject) for style in STYLES)
    for impression in IMPRESSIONS:
        article = "an" if impression[0] in "aeiou" else "a"
        yield from (f"{article} {impression} {noun}" for noun in NOUNS)


def main() -> None:
    """Write the pool."""
    path = Path(library_folder()).parent / "texts" / "general.txt"
    path.write_text("\n".join(generate_texts()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
