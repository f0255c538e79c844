"""CLIP's own tokenizer in the files that other loaders read: open_clip's byte-pair table as Hugging Face writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip

from ...editor.errors import ExportError
from ...editor.models.model import Model
from .text_cleaning import describe_cleaning

START, END = "<|startoftext|>", "<|endoftext|>"
SIDECARS = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
# As in open_clip's tokenizer; words are lower-cased before.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def require_clip_text(model: Model, target: str) -> None:
    """Refuse text towers that do not read CLIP's tokens, or that padding after the end of the text would change.

    Raises:
        ExportError: Naming what was found, and the targets that hold it.
    """
    found = _describe_difference(model)
    if found is not None:
        raise ExportError(
            f"cannot export to {target}: {found}, the target holds CLIP's own tokenizer and text tower only. "
            "Use --target open-clip or onnx."
        )


def write_tokenizer_files(model: Model, folder: Path) -> None:
    """Write `tokenizer.json`, `vocab.json`, `merges.txt`, and the two files about special tokens.

    Unlike open_clip, which pads with 0, readers of these files pad with the end of the text: the tower pools at the
    first.
    """
    tokenizer: Any = model.tokenizer
    vocabulary = {_spell(token): index for token, index in tokenizer.encoder.items()}
    # The order of the lines is the rank of a merge.
    merges = [" ".join(pair) for pair, _ in sorted(tokenizer.bpe_ranks.items(), key=lambda item: item[1])]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {
        **special,
        "model_max_length": tokenizer.context_length,
        # Reads tokenizer.json as it is; transformers 5 gives its `CLIPTokenizer` rules that clean less.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "do_lower_case": True,
        "add_prefix_space": False,
    }
    _write_json(folder / "tokenizer.json", _describe_tokenizer(vocabulary, merges))
    _write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)


def _describe_difference(model: Model) -> str | None:
    tokenizer, text = model.tokenizer, getattr(model.module, "text", model.module)
    if not isinstance(tokenizer, open_clip.SimpleTokenizer):
        return f"the tokenizer is {type(tokenizer).__name__}"
    # A token id beyond the embedding would be read out of bounds.
    if len(tokenizer.encoder) > text.token_embedding.num_embeddings:
        return f"the vocabulary has {text.token_embedding.num_embeddings} tokens instead of {len(tokenizer.encoder)}"
    pool = getattr(text, "pool_type", getattr(text, "text_pool_type", None))
    if pool not in ("argmax", "eos"):
        return f"the text tower pools by {pool!r}"
    # Without a causal mask, and with a CLS token at the end, padding reaches the embedding.
    if getattr(text, "attn_mask", None) is None or getattr(text, "cls_emb", None) is not None:
        return "the text tower reads what follows the end of the text"
    return None


def _spell(token: str) -> str:
    # open_clip and Hugging Face call the same two tokens by different names.
    return {"<start_of_text>": START, "<end_of_text>": END}.get(token, token)


def _describe_tokenizer(vocabulary: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """The fast tokenizer: normaliser, words, byte-pair merges, and the two tokens around a text."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    words = {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Removed", "invert": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[token], "content": token, **flags} for token in (START, END)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                *describe_cleaning(),
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, byte_level]},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, vocabulary[END]],
            "cls": [START, vocabulary[START]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
