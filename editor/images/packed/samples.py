"""Samples of a webdataset: members of a tar with one name up to its first dot, of which one is the image.

`0.jpg`, `0.seg.png` and `0.txt` are one sample, whose image is `0.jpg`. Names of photos hold dots too: `a.1.jpg` and
`a.2.jpg` are two images, since nothing says that they are parts of one.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

# As readers of webdatasets look for an image; other suffixes after these.
_ORDER = ("jpg", "png", "jpeg", "webp")
_IMAGE_PARTS = ("image", "img", "rgb", "input", "photo")


def choose_images(names: Sequence[str]) -> list[int]:
    """Positions of the images among members of a tar that all are pictures: one for each sample, in the given order."""
    samples = _group(names)
    alike = _are_alike(samples)
    chosen: list[int] = []
    for sample in samples:
        has_plain = any(part.count(".") < 2 for part in sample)
        chosen += [sample[min(sample, key=_rank)]] if alike or has_plain else sample.values()
    return sorted(chosen)


def find_parts(names: Sequence[str], suffix: str) -> dict[int, int]:
    """Of the members of a tar, for each its sample's member with a suffix such as `.cls`, by position."""
    found = {}
    for sample in _group(names):
        if suffix in sample:
            found |= dict.fromkeys(sample.values(), sample[suffix])
    return found


def _group(names: Sequence[str]) -> list[dict[str, int]]:
    """Positions by part, of each sample. A part that comes again begins another sample: tars may be concatenated."""
    samples: list[dict[str, int]] = []
    current: dict[str, dict[str, int]] = {}
    for position, name in enumerate(names):
        key, part = _split(name)
        if key not in current or part in current[key]:
            current[key] = {}
            samples.append(current[key])
        current[key][part] = position
    return samples


def _split(name: str) -> tuple[str, str]:
    """Folder and name up to the first dot, and the rest in small letters, such as `.seg.png`."""
    folder, base = posixpath.split(name)
    # A dot in front belongs to the name.
    cut = base.find(".", 1)
    return posixpath.join(folder, base[:cut]), base[cut:].lower()


def _are_alike(samples: Sequence[Mapping[str, int]]) -> bool:
    """Whether several samples all have the same parts, and more than one: then they are parts, not names with dots."""
    kinds = {frozenset(sample) for sample in samples}
    return len(samples) > 1 and len(kinds) == 1 and len(next(iter(kinds))) > 1


def _rank(part: str) -> tuple[bool, int, int]:
    """A plain suffix is the image itself; of several parts with names, the one called so."""
    middle, _, suffix = part.rpartition(".")
    middle = middle.strip(".")
    named = _IMAGE_PARTS.index(middle) if middle in _IMAGE_PARTS else len(_IMAGE_PARTS)
    return bool(middle), named, _ORDER.index(suffix) if suffix in _ORDER else len(_ORDER)
