"""The tokenizer in exported files reads texts as open_clip does, as far as such a file can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import clipedit
from clipedit.export.consumers.text_cleaning import NOT_CLEANED, describe_uncleaned
from clipedit.export.consumers.tokenizer_files import write_tokenizer_files

CLEANED = {
    "curly quotes": "a cat\u2019s \u201cbed\u201d, \u201elow\u201c and \u2018single\u2019",
    "ligatures": "\ufb01ve \ufb02owers, e\ufb03cient, \ufb05ill, \u0132ssel, \u01c4",
    "full width": "\uff46\uff55\uff4c\uff4c\u3000\uff37idth\uff01 \uff8a\uff9b\uff70",
    "entities": "cats &amp; dogs &lt;b&gt; caf&eacute; &Eacute; &copy; &hearts; &AMP; l&apos;&eacute;t&eacute;&nbsp;x",
    "entities by number": "it&#39;s &#x27;quoted&#x27; &#8217;s &#34;x&#34;",
    "entities twice": "cats &amp;amp; dogs &amp;quot;x&amp;quot;",
    "control characters": "a\x00b\ufeffc \x1b[31mred\x1b[0m \u206a.",
    "blanks": "  a\u2028b\u00a0c\r\n\td  ",
    "accents in two letters": "nai\u0308ve e\u0301t\u00e9",
    "case": "STRASSE \u00df \u00c9T\u00c9",
    "plain": "a photo of a circle, it's red... 1990! \u2026 \u2014 \u00bd \u2122",
}


@pytest.fixture(scope="module")
def files(demo_model: clipedit.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer_files(demo_model, folder)
    return folder


def read_by_open_clip(model: clipedit.Model, text: str) -> list[int]:
    tokens = model.tokenizer([text])[0].tolist()
    return tokens[: tokens.index(max(tokens)) + 1]


@pytest.mark.parametrize("kind", CLEANED)
def test_texts_are_cleaned_as_open_clip_cleans_them(kind: str, files: Path, demo_model: clipedit.Model) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    found = tokenizers.Tokenizer.from_file(str(files / "tokenizer.json")).encode(CLEANED[kind]).ids
    assert found == read_by_open_clip(demo_model, CLEANED[kind])


def test_transformers_reads_the_same_rules(files: Path, demo_model: clipedit.Model) -> None:
    transformers = pytest.importorskip("transformers")
    found = transformers.AutoTokenizer.from_pretrained(str(files))(list(CLEANED.values()))["input_ids"]
    assert found == [read_by_open_clip(demo_model, text) for text in CLEANED.values()]


def test_what_is_not_cleaned_is_named_with_what_it_costs(files: Path, demo_model: clipedit.Model) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(files / "tokenizer.json"))
    lines = describe_uncleaned(demo_model)
    assert len(lines) == len(NOT_CLEANED)
    for line, example in zip(lines, NOT_CLEANED.values(), strict=True):
        assert tokenizer.encode(example).ids != read_by_open_clip(demo_model, example)
        ids = tokenizer.encode(example).ids
        padded = demo_model.tokenizer([example]).new_zeros(1, demo_model.tokenizer.context_length)
        padded[0, : len(ids)] = padded.new_tensor(ids)
        one, other = demo_model.encode_tokens(padded)[0], demo_model.encode_text([example])[0]
        cosine = float(one @ other / (one.norm() * other.norm()))
        assert f"`{example}` has a cosine of {cosine:.3f}" in line and cosine < 0.999


def test_the_rules_are_plain_json(files: Path) -> None:
    rules = json.loads((files / "tokenizer.json").read_text(encoding="utf-8"))["normalizer"]["normalizers"]
    # What transformers.js and Rust read alike.
    assert {rule["type"] for rule in rules} == {"Replace", "NFC", "Lowercase"}
