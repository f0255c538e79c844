"""How open_clip cleans a text before it cuts it into words, as steps that a `tokenizer.json` can hold.

open_clip runs ftfy and `html.unescape`. Of these a file can hold what replaces one sequence of letters by another:
entities with names, curly quotes, ligatures, full width, control characters. It cannot hold what needs to look at the
whole text (text in a wrong encoding) or to compute (the number of any letter): `NOT_CLEANED`.
"""

from __future__ import annotations

import copy
import html.entities
import unicodedata
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F

from ...editor.models.model import Model

# What these files read otherwise than open_clip, each with an example whose cost the card measures.
NOT_CLEANED = {
    "text in a wrong encoding, which open_clip repairs": "a photo of a cafÃ©",
    "HTML entities by number, beyond ASCII and quotes": "a photo of a caf&#233;",
}
# Dutch and Serbian pairs in one letter, the Afrikaans one with a quote, and those of typesetters.
_LIGATURES = (0x132, 0x133, 0x149, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07))
_QUOTES = {"'": r"[\u02bc\u2018-\u201b]", '"': r"[\u201c-\u201f]"}
# Sequences that colour a terminal, then letters that are not shown; ends of lines are blanks further on.
_UNSEEN = (r"\x1b\[[0-9;]*[A-Za-z]", r"[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffb]")
_FULL_WIDTH = (0x3000, *range(0xFF01, 0xFFF0))


@torch.no_grad()
def describe_uncleaned(model: Model) -> list[str]:
    """What is not cleaned, with an example and its cosine to what open_clip makes of it."""
    plain: Any = copy.copy(model.tokenizer)
    plain.clean_fn = lambda text: " ".join(text.lower().split())
    texts = list(NOT_CLEANED.values())
    cosines = F.cosine_similarity(model.encode_tokens(plain(texts)), model.encode_text(texts))
    return [
        f"{what}: `{example}` has a cosine of {cosine:.3f} to what open_clip reads"
        for (what, example), cosine in zip(NOT_CLEANED.items(), cosines.tolist(), strict=True)
    ]


def describe_cleaning() -> list[dict[str, Any]]:
    """Normalisers of a `tokenizer.json`, in open_clip's order; what follows them folds blanks and case."""
    # Twice: what is escaped twice is read as it is meant.
    entities = [("&amp;", "&"), ("&amp;", "&"), *_list_entities()]
    # Ligature of long s and t: ftfy keeps that s, other plain forms are Unicode's own.
    letters = [("\ufb05", "\u017ft"), *_list_plain(_LIGATURES), *_list_plain(_FULL_WIDTH)]
    steps = [_replace(letter, meant) for letter, meant in (*entities, *letters)]
    steps += [_replace_all(pattern, quote) for quote, pattern in _QUOTES.items()]
    return steps + [_replace_all(pattern, "") for pattern in _UNSEEN]


def _list_entities() -> list[tuple[str, str]]:
    """Entities with names in HTML 4, and the numbers that programs write for ASCII and quotes."""
    named = [(f"&{name};", chr(code)) for name, code in html.entities.name2codepoint.items() if name != "amp"]
    codes = [ord(letter) for letter in "\"'<>&\xa0\u2018\u2019\u201c\u201d\u2013\u2014\u2026"]
    # These alone are also known in capitals.
    shouted = [("&AMP;", "&"), ("&LT;", "<"), ("&GT;", ">"), ("&QUOT;", chr(34)), ("&COPY;", "©"), ("&REG;", "®")]
    return [*named, *shouted, ("&apos;", "'"), *((spelled, chr(code)) for code in codes for spelled in _spell(code))]


def _spell(code: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys((f"&#{code};", f"&#0{code};", f"&#x{code:x};", f"&#x{code:X};")))


def _list_plain(codes: Iterable[int]) -> list[tuple[str, str]]:
    pairs = ((chr(code), unicodedata.normalize("NFKC", chr(code))) for code in codes)
    return [(letter, plain) for letter, plain in pairs if letter != plain]


def _replace(letters: str, meant: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": letters}, "content": meant}


def _replace_all(pattern: str, meant: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": meant}
