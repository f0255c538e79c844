"""A timm trunk, bare or inside open_clip's `TimmModel`: where it is, how it pools, and what follows it.

Bare, the embedding is timm's own representation, `forward_head(forward_features(x), pre_logits=True)`: pooled and
normalised, before the classifier. It is what alignment maps to a CLIP's space, and it has no final map of its own (`P =
I`); a classifier after it, `head.{weight,bias}`, is what `distilled` refits: then the logits change, and the
representation does not.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from .final_map import FinalMap
from .norms import FrozenNorm
from .pools import AttentionPool, LatentPool, MeanPool
from .readout import Readout


def find_trunk(module: nn.Module) -> tuple[Any, str]:
    """The image tower's trunk and the prefix of its tensor names; the module itself where there is no `visual`."""
    visual: Any = getattr(module, "visual", None)
    if isinstance(visual, TimmModel):
        return visual.trunk, "visual.trunk."
    return (module, "") if visual is None else (visual, "visual.")


def embed_image(module: Any, pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image d_embed"]:
    """The module's own embedding, unnormalised."""
    if hasattr(module, "encode_image"):
        return module.encode_image(pixels, normalize=False)
    return module.forward_head(module.forward_features(pixels), pre_logits=True)


def find_grid(trunk: Any, pixels: Tensor) -> tuple[int, int]:
    """Rows and columns of patches, which are the last tokens, row by row."""
    embed = trunk.patch_embed
    return embed.dynamic_feat_size(tuple(pixels.shape[2:])) if trunk.dynamic_img_size else embed.grid_size


def trunk_refusal(module: Any, kind: type[Any]) -> str | None:
    """Why a trunk of a class cannot be read, or None."""
    trunk: Any = find_trunk(module)[0]
    if not isinstance(trunk, kind):
        return f"the image tower is a {type(trunk).__name__}, not timm's {kind.__name__}"
    if trunk.global_pool not in ("token", "avg", "map"):
        return f"it pools by {trunk.global_pool!r}"
    extra = list(getattr(getattr(module, "visual", None), "head", nn.Sequential()))
    if not all(isinstance(layer, (nn.Linear, nn.Dropout)) for layer in extra):
        return f"a {type(extra[-1]).__name__} follows the trunk"
    if trunk.attn_pool is not None and (reason := LatentPool.refusal(trunk.attn_pool)):
        return reason
    return next(filter(None, map(FrozenNorm.refusal, (trunk.norm, trunk.fc_norm))), None)


def build_readout(module: nn.Module) -> Readout:
    """The trunk's norms, pool and final map."""
    trunk, prefix = find_trunk(module)
    pool = LatentPool(trunk.attn_pool) if trunk.attn_pool is not None else MeanPool()
    # Class and register tokens are pooled too by Eva's attention pool, and by others where they say so.
    everything = getattr(trunk, "pool_include_prefix", isinstance(pool, AttentionPool))
    first = 0 if everything else trunk.num_prefix_tokens
    # The class token; a distilled DeiT averages it with a second one.
    classes = 2 if hasattr(trunk, "dist_token") else 1
    tokens = slice(0, classes) if trunk.global_pool == "token" else slice(first, None)
    before, after = FrozenNorm(trunk.norm), FrozenNorm(trunk.fc_norm)
    return Readout(tokens, before, pool, after, _find_final_map(module, trunk, prefix, pool), trunk.embed_dim)


def _find_final_map(module: Any, trunk: Any, prefix: str, pool: MeanPool | AttentionPool) -> FinalMap:
    has_head = isinstance(trunk.head, nn.Linear)
    if not prefix:
        # A distilled DeiT averages the logits of two classifiers: no one layer holds a changed map.
        plain = has_head and trunk.head.bias is not None and not hasattr(trunk, "head_dist")
        return FinalMap(module, trunk.embed_dim, classifier="head" if plain else None)
    if hasattr(getattr(module.visual, "head", None), "proj"):
        linear = "visual.head.proj"
    else:
        linear = f"{prefix}head" if has_head else None
    return FinalMap(module, trunk.embed_dim, linear=linear, shift=_find_shift(trunk, prefix, pool))


def _find_shift(trunk: Any, prefix: str, pool: MeanPool | AttentionPool) -> str | None:
    """A bias that adds to the trunk's output as it is."""
    if getattr(trunk.fc_norm, "bias", None) is not None:
        return f"{prefix}fc_norm.bias"
    # A last norm without a bias would rescale whatever is added before it.
    if not isinstance(trunk.fc_norm, nn.Identity):
        return None
    if isinstance(pool, AttentionPool):
        # The pool's MLP reads what `proj` writes, so with an MLP only its last bias adds as it is.
        return f"{prefix}attn_pool.{'proj' if not pool.has_mlp else 'mlp.fc2'}.bias"
    return f"{prefix}norm.bias" if getattr(trunk.norm, "bias", None) is not None else None
