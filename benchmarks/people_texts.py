"""The texts of the people world: its concepts, and the pool that labels heads.

    python benchmarks/people_texts.py MODEL_FOLDER     # beside weights that were trained without them

`gender` lists two of the four wordings of each gender; the others are held out, to ask whether an edit reaches what
nobody listed.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from people_world import ADJECTIVES, FORMS, GENDERS, NOUNS, ROLES, SKINS

from clipedit.demo.texts import write_texts
from clipedit.demo.world import with_article

# Of each gender, the first.
LISTED_WORDINGS = 2


def skin_nouns(skin: str, nouns: Sequence[str] = GENDERS) -> list[str]:
    """People of a skin tone, of every gender alike."""
    return [f"{noun} with {skin} skin" for noun in nouns]


def concept_documents(genders: Sequence[str] = GENDERS) -> dict[str, dict[str, object]]:
    """The concepts `role`, `gender` and `skin-tone`; `gender` may leave out the third value."""
    described = {
        "role": ("What somebody does.", {role: [role] for role in ROLES}),
        "gender": (
            "Whether somebody reads as a man, a woman or neither.",
            {gender: NOUNS[gender][:LISTED_WORDINGS] for gender in genders},
        ),
        "skin-tone": ("The tone of somebody's skin.", {skin: skin_nouns(skin) for skin in SKINS}),
    }
    found = {name: _document(name, *what) for name, what in described.items()}
    # The library's own words for people are mostly of gender: by meaning both may share heads.
    found["gender"]["related"] = ["people"]
    return found


def _document(name: str, description: str, instances: Mapping[str, Sequence[str]]) -> dict[str, object]:
    texts = {key: [text for noun in nouns for text in _write(noun)] for key, nouns in instances.items()}
    return {"name": name, "description": description, "instances": texts}


def _write(words: str) -> list[str]:
    return [form.format(with_article(words)) for form in FORMS]


def pool_texts() -> list[str]:
    """Descriptions of the whole world, for TextSpan."""
    named = [noun for gender in GENDERS for noun in NOUNS[gender]]
    pairs = itertools.product(GENDERS, ROLES)
    both = [
        words
        for gender, role in pairs
        for words in (f"{gender} who is {with_article(role)}", f"{ADJECTIVES[gender]} {role}")
    ]
    skinned = [words for skin in SKINS for words in skin_nouns(skin, [*GENDERS, *ROLES])]
    plain = [text for words in (*ROLES, *named) for text in _write(words)]
    return list(dict.fromkeys([*plain, *(f"a photo of {with_article(words)}" for words in (*both, *skinned))]))


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        write_texts(Path(folder), concept_documents(), pool_texts())
