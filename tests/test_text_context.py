"""Cutting a text tower's context to the longest text of a batch changes no embedding, whatever the tower reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn
from transformers import BertConfig, M2M100Config, MT5Config, RobertaConfig

import clipedit
from clipedit.editor.towers.vit import text_context
from clipedit.editor.towers.vit.text_context import count_needed, embed_tokens

VISION = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 1, "head_width": 12}
CONTEXT, WORDS, END = 16, 60, 99
TEXT = {"context_length": CONTEXT, "vocab_size": 100, "width": 32, "heads": 4, "layers": 3}
CPU = torch.device("cpu")
SMALL = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"intermediate_size": 64, "max_position_embeddings": 40}
MT5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
NLLB = {"vocab_size": 100, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
NLLB |= {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "max_position_embeddings": 40}


def clip(**text: Any) -> nn.Module:
    return CLIP(24, VISION, {**TEXT, **text})


def custom(**text: Any) -> nn.Module:
    return CustomTextCLIP(24, VISION, {**TEXT, **text})


def coca(**text: Any) -> nn.Module:
    multimodal = {"width": 32, "context_length": CONTEXT, "vocab_size": 100, "mlp_ratio": 2, "heads": 4, "layers": 1}
    own = {**TEXT, "embed_cls": True, "output_tokens": True, **text}
    vision = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    return CoCa(24, {**multimodal, "attn_pooler_heads": 2}, own, vision)


def corrected_coca() -> Any:
    module: Any = coca()
    # open_clip knows it, its configurations do not name it.
    module.text.correct_cls_mask = True
    return module


def hugging_face(config: Any, pooler: str) -> nn.Module:
    module: Any = custom()
    text = HFTextEncoder("none", 24, config=config, pooler_type=pooler, proj_type="mlp")
    # As open_clip does where it loads them by name.
    text.transformer = text.transformer.encoder if config.is_encoder_decoder else text.transformer
    module.text = text
    return module


# Each with whether its context may be cut.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "CLIP": (clip, True),
    "CLIP: linear projection": (lambda: clip(proj_bias=True), True),
    "CLIP: LayerScale": (lambda: clip(ls_init_value=0.3), True),
    "EVA, PE: custom text": (custom, True),
    "worldwide: end token by its number": (lambda: custom(pool_type="eos", eos_id=END), True),
    "first token": (lambda: custom(pool_type="first"), True),
    "causal, last token": (lambda: custom(pool_type="last"), False),
    "SigLIP: no mask, last token": (lambda: custom(no_causal_mask=True, pool_type="last", proj_bias=True), False),
    "CLIPA: no mask, last token": (lambda: clip(no_causal_mask=True, pool_type="last"), False),
    "MobileCLIP: no mask, end of text": (lambda: custom(no_causal_mask=True), False),
    "CoCa": (coca, True),
    "CoCa: mask corrected": (corrected_coca, True),
    "BERT: class token": (lambda: hugging_face(BertConfig(**SMALL, pad_token_id=0), "cls_pooler"), True),
    "RoBERTa: mean": (lambda: hugging_face(RobertaConfig(**SMALL, pad_token_id=0), "mean_pooler"), True),
    "mT5: mean": (lambda: hugging_face(MT5Config(**MT5, pad_token_id=0), "mean_pooler"), True),
    "NLLB: first token": (lambda: hugging_face(M2M100Config(**NLLB, pad_token_id=0), "cls_pooler"), True),
    "BERT: mean": (lambda: hugging_face(BertConfig(**SMALL, pad_token_id=0), "mean_pooler"), True),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = FAMILIES[name][0]().eval()
    with torch.no_grad():
        if hasattr(module, "text_decoder"):
            # open_clip leaves it as the memory was, which may hold NaN, and NaN equals nothing.
            module.text_decoder.text_projection.normal_()
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif parameter.ndim == 2:
                # Strong enough that attention, and so what is masked, matters.
                parameter.mul_(3)
    return module


def tokens_of(*lengths: int) -> Tensor:
    """Rows of words that end in the end token, filled up with zeros; each as long as asked."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.zeros(len(lengths), CONTEXT, dtype=torch.long)
    for row, length in zip(tokens, lengths, strict=True):
        row[: length - 1] = torch.randint(3, WORDS, (length - 1,), generator=generator)
        row[length - 1] = END
    return tokens


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    # Several batches, each of its own length.
    monkeypatch.setattr(text_context, "TEXTS_PER_BATCH", 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_are_those_of_the_whole_context_in_the_order_given(name: str) -> None:
    module, cut = build(name), FAMILIES[name][1]
    tokens = tokens_of(7, 3, 16, 2, 5, 5, 9, 4, 3, 15)
    with torch.no_grad():
        whole = module.encode_text(tokens, normalize=False)
    found = embed_tokens(module, tokens, CPU)
    assert float((found - whole).norm() / whole.norm()) < 1e-6
    assert float((found - whole).norm(dim=1).div(whole.norm(dim=1)).max()) < 2e-6
    # Were the texts alike, a wrong order would not show.
    assert float((whole[0] - whole[1]).norm() / whole.norm(dim=1).mean()) > 0.01
    assert (int(count_needed(module, tokens).min()) < CONTEXT) == cut


def texts_that_begin_alike() -> Tensor:
    """Beginnings of three texts, each ended at several places and one of them twice, in no order."""
    whole, rows = tokens_of(16, 13, 9), []
    for row in whole:
        for length in (3, 5, 6, 9):
            rows.append(torch.cat([row[: length - 1], torch.tensor([END]), torch.zeros(CONTEXT - length).long()]))
    rows = [*rows, rows[2], *whole]
    return torch.stack(rows)[torch.randperm(len(rows), generator=torch.Generator().manual_seed(2))]


# Towers whose tokens see nothing behind them, and no padding.
CAUSAL = {
    "CLIP",
    "CLIP: linear projection",
    "CLIP: LayerScale",
    "EVA, PE: custom text",
    "worldwide: end token by its number",
    "first token",
    "causal, last token",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_texts_have_in_common_is_computed_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_context, "TEXTS_PER_TREE", 8)
    monkeypatch.setattr(text_context, "MOST_DIFFERENT", 1.0)
    module, tokens, nodes, computed = build(name), texts_that_begin_alike(), [], []
    with torch.no_grad():
        whole = module.encode_text(tokens, normalize=False)
    embed = text_context.embed_tree
    monkeypatch.setattr(
        text_context, "embed_tree", lambda owner, tree, *rest: nodes.append(tree) or embed(owner, tree, *rest)
    )
    if name in CAUSAL:
        first = module.get_submodule("text.transformer" if hasattr(module, "text") else "transformer").resblocks[0]
        first.mlp.register_forward_hook(lambda _, given, __: computed.append(len(given[0])))
    found = embed_tokens(module, tokens, CPU)
    assert float((found - whole).norm(dim=1).div(whole.norm(dim=1)).max()) < 2e-6
    assert bool(nodes) == (name in CAUSAL)
    assert (
        sum(computed) == sum(len(tree.tokens) for tree in nodes) < int(count_needed(module, tokens).sum()) or not nodes
    )


def test_a_list_with_little_in_common_goes_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_context, "TEXTS_PER_TREE", 4)
    monkeypatch.setattr(text_context, "embed_tree", lambda *_: pytest.fail("these texts share nothing"))
    module, tokens = build("CLIP"), tokens_of(7, 3, 16, 2, 5, 5)
    with torch.no_grad():
        whole = module.encode_text(tokens, normalize=False)
    assert float((embed_tokens(module, tokens, CPU) - whole).norm() / whole.norm()) < 1e-6


def test_a_tower_with_code_of_its_own_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(CLIP):
        def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
            return 2 * super().encode_text(text, normalize)

    monkeypatch.setattr(text_context, "TEXTS_PER_TREE", 8)
    torch.manual_seed(0)
    module, tokens = Doubled(24, VISION, TEXT).eval(), texts_that_begin_alike()
    with torch.no_grad():
        assert torch.allclose(embed_tokens(module, tokens, CPU), module.encode_text(tokens), atol=1e-5)


@pytest.mark.parametrize("name", ["CLIP", "CoCa", "EVA, PE: custom text"])
def test_the_module_is_left_as_it_was(name: str) -> None:
    module = build(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    mask = module.get_submodule("text" if hasattr(module, "text") else "").attn_mask.clone()
    embed_tokens(module, tokens_of(3, 4, 5, 6), CPU)
    after = module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(module.get_submodule("text" if hasattr(module, "text") else "").attn_mask, mask)


def test_what_follows_the_longest_text_of_a_batch_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    module, widths = build("CLIP"), []
    module.token_embedding.register_forward_hook(lambda _, given, __: widths.append(tuple(given[0].shape)))
    embed_tokens(module, tokens_of(7, 3, 16, 2, 5, 5, 9), CPU)
    assert widths == [(3, 5), (3, 9), (1, 16)]


def test_padding_on_the_left_or_of_unknown_kind_keeps_the_whole_context() -> None:
    module = build("RoBERTa: mean")
    assert count_needed(module, tokens_of(3, 4).flip(1)).tolist() == [CONTEXT, CONTEXT]
    module.text.config.pad_token_id = None
    assert count_needed(module, tokens_of(3, 4)).tolist() == [CONTEXT, CONTEXT]


def test_a_row_of_padding_alone_is_encoded_as_before() -> None:
    # Token 0 is a letter of CLIP's vocabulary too: a row may hold nothing else.
    for name in ("CLIP", "CoCa"):
        module, tokens = build(name), torch.zeros(2, CONTEXT, dtype=torch.long)
        with torch.no_grad():
            assert torch.allclose(embed_tokens(module, tokens, CPU), module.encode_text(tokens, normalize=False), 1e-5)


def test_the_demo_and_a_real_size_embed_as_open_clip_does(demo_model: clipedit.Model) -> None:
    texts = ["a photo of a dog", "two red circles in the snow, and a very long line of words behind them", "", "!"]
    for model in (demo_model, clipedit.load_model("ViT-S-32")):
        whole = model.module.encode_text(model.tokenizer(texts), normalize=False).detach()
        found = model.encode_text(texts)
        assert float((found - whole).norm() / whole.norm()) < 1e-6
    assert open_clip.SimpleTokenizer()([""]).shape == (1, 77)
