"""Tensor names of Hugging Face `CLIPModel` and `SiglipModel`, beside open_clip's for the same weights, in both
directions.

Nothing here reads files or builds modules: a list of names, and two functions that move tensors along it. What is one
tensor on one side can be several on the other (`in_proj` is q, k and v), transposed, or have a leading axis of one
more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ModelError

# Parts of a block, as transformers calls them; then queries, keys and values in one, and these parts, as others do.
_BLOCK = ("self_attn.out_proj", "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
_OPEN_CLIP_BLOCK = ("attn.in_proj_", "attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
_TIMM_BLOCK = ("attn.qkv.", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True)
class SameTensors:
    """Tensors that hold the same numbers under other names: those of `own`, joined along the rows, are those of
    `theirs`.

    Attributes:
        own: open_clip's names. theirs: Hugging Face's names.
        shares: How the rows are divided among `own`; those of `theirs` have equal parts.
        transposed: Whether the rows of one side are the columns of the other.
        extra_axis: Leading axes of length one that `own` has more (1) or fewer (-1) than `theirs`.
    """

    own: tuple[str, ...]
    theirs: tuple[str, ...]
    shares: tuple[int, ...] = (1,)
    transposed: bool = False
    extra_axis: int = 0


def clip_names(vision_layers: int, text_layers: int, *, text_prefix: str = "") -> list[SameTensors]:
    """`CLIPModel` and open_clip's `CLIP`; `text_prefix` is `text.` for `CustomTextCLIP`."""
    found = [
        _same("logit_scale", "logit_scale"),
        _same("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        _same("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        _same("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
        # transformers spells it so.
        *_both("visual.ln_pre", "vision_model.pre_layrnorm"),
        *_both("visual.ln_post", "vision_model.post_layernorm"),
        # open_clip multiplies by a matrix [width, d_embed], transformers has a linear layer [d_embed, width].
        SameTensors(("visual.proj",), ("visual_projection.weight",), transposed=True),
        *_text_names(text_prefix, text_layers),
        SameTensors((f"{text_prefix}text_projection",), ("text_projection.weight",), transposed=True),
    ]
    for layer in range(vision_layers):
        found += _block_names(f"visual.transformer.resblocks.{layer}", f"vision_model.encoder.layers.{layer}")
    return found


def siglip_names(vision_layers: int, text_layers: int) -> list[SameTensors]:
    """`SiglipModel`, and open_clip's `CustomTextCLIP` over timm's `VisionTransformer` with attention pooling."""
    trunk, tower = "visual.trunk", "vision_model"
    pool, head = f"{trunk}.attn_pool", f"{tower}.head"
    found = [
        # A scalar here, [1] there.
        SameTensors(("logit_scale",), ("logit_scale",), extra_axis=-1),
        SameTensors(("logit_bias",), ("logit_bias",), extra_axis=-1),
        # [1, token, width] here, [token, width] there.
        SameTensors((f"{trunk}.pos_embed",), (f"{tower}.embeddings.position_embedding.weight",), extra_axis=1),
        *_both(f"{trunk}.patch_embed.proj", f"{tower}.embeddings.patch_embedding"),
        *_both(f"{trunk}.norm", f"{tower}.post_layernorm"),
        _same(f"{pool}.latent", f"{head}.probe"),
        *(
            # timm's pool has q apart from k and v; there all three are stacked.
            SameTensors((f"{pool}.q.{leaf}", f"{pool}.kv.{leaf}"), (f"{head}.attention.in_proj_{leaf}",), shares=(1, 2))
            for leaf in ("weight", "bias")
        ),
        *_both(f"{pool}.proj", f"{head}.attention.out_proj"),
        *_both(f"{pool}.norm", f"{head}.layernorm"),
        *_both(f"{pool}.mlp.fc1", f"{head}.mlp.fc1"),
        *_both(f"{pool}.mlp.fc2", f"{head}.mlp.fc2"),
        *_text_names("text.", text_layers),
        *_both("text.text_projection", "text_model.head"),
    ]
    for layer in range(vision_layers):
        found += _block_names(f"{trunk}.blocks.{layer}", f"{tower}.encoder.layers.{layer}", _TIMM_BLOCK)
    return found


def convert_from_hf(state: Mapping[str, Tensor], names: Sequence[SameTensors]) -> dict[str, Tensor]:
    """open_clip's tensors from Hugging Face's.

    Raises:
        ModelError: If a tensor is missing, or one is left that has no counterpart (`position_ids` may be).
    """
    known = {name for entry in names for name in entry.theirs}
    # `position_ids` only count: older versions of transformers saved them as a buffer.
    spare = sorted(name for name in state if name not in known and not name.endswith("position_ids"))
    if spare:
        raise ModelError(
            f"cannot convert the checkpoint: {spare[0]} has no counterpart in open_clip. Give a `CLIPModel` or "
            "`SiglipModel`."
        )
    found: dict[str, Tensor] = {}
    for entry in names:
        joined = _joined(state, entry.theirs)
        joined = joined.T if entry.transposed else joined
        parts = (
            # A scalar has no rows to divide.
            joined.split([len(joined) * share // sum(entry.shares) for share in entry.shares])
            if joined.ndim
            else [joined]
        )
        # Contiguous copies: parts and transposes share memory, which safetensors does not write.
        found |= {
            name: _with_axes(part, entry.extra_axis).contiguous() for name, part in zip(entry.own, parts, strict=True)
        }
    return found


def convert_to_hf(state: Mapping[str, Tensor], names: Sequence[SameTensors]) -> dict[str, Tensor]:
    """Hugging Face's tensors from open_clip's; `convert_from_hf` gives the same numbers back.

    Raises:
        ModelError: If a tensor is missing.
    """
    found: dict[str, Tensor] = {}
    for entry in names:
        joined = _with_axes(_joined(state, entry.own), -entry.extra_axis)
        joined = joined.T if entry.transposed else joined
        parts = joined.chunk(len(entry.theirs)) if len(entry.theirs) > 1 else [joined]
        found |= {name: part.contiguous() for name, part in zip(entry.theirs, parts, strict=True)}
    return found


def _same(own: str, theirs: str) -> SameTensors:
    return SameTensors((own,), (theirs,))


def _both(own: str, theirs: str) -> list[SameTensors]:
    return [_same(f"{own}.{leaf}", f"{theirs}.{leaf}") for leaf in ("weight", "bias")]


def _queries_keys_values(theirs: str, leaf: str) -> tuple[str, ...]:
    return tuple(f"{theirs}.self_attn.{part}_proj.{leaf}" for part in "qkv")


def _block_names(own: str, theirs: str, spelled: Sequence[str] = _OPEN_CLIP_BLOCK) -> list[SameTensors]:
    joined, *others = spelled
    found = [SameTensors((f"{own}.{joined}{leaf}",), _queries_keys_values(theirs, leaf)) for leaf in ("weight", "bias")]
    pairs = zip(others, _BLOCK, strict=True)
    return found + [same for a, b in pairs for same in _both(f"{own}.{a}", f"{theirs}.{b}")]


def _text_names(prefix: str, layers: int) -> list[SameTensors]:
    found = [
        _same(f"{prefix}token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        _same(f"{prefix}positional_embedding", "text_model.embeddings.position_embedding.weight"),
        *_both(f"{prefix}ln_final", "text_model.final_layer_norm"),
    ]
    for layer in range(layers):
        found += _block_names(f"{prefix}transformer.resblocks.{layer}", f"text_model.encoder.layers.{layer}")
    return found


def _joined(state: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    missing = [name for name in names if name not in state]
    if missing:
        raise ModelError(f"cannot convert the checkpoint: it has no tensor {missing[0]}. Check what it is a model of.")
    return torch.cat([state[name] for name in names]) if len(names) > 1 else state[names[0]]


def _with_axes(tensor: Tensor, extra: int) -> Tensor:
    """One leading axis of length one more (1), or fewer (-1)."""
    if extra == 0:
        return tensor
    return tensor[None] if extra > 0 else tensor.squeeze(0)
