"""open_clip's `VisionTransformer`: ViT-B-32 to bigG, OpenAI, LAION, DataComp, MetaCLIP and DFN weights.

The forward pass is written over the module's own parameters, without `nn.MultiheadAttention`: the value of each head is a
by-product of attention. `tests/test_towers.py` holds it to `encode_image` within 1e-5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from ..components import ComponentGroup, ComponentId, Features


class OpenClipViT:
    """Adapter for `open_clip.CLIP` and `CustomTextCLIP` models whose `visual` is a `VisionTransformer`."""

    title: ClassVar[str] = "open_clip ViT"
    supports: ClassVar[str] = "open_clip VisionTransformer with CLS or average pooling"

    def __init__(self, module: nn.Module):
        self.module = module
        self.visual: Any = module.visual
        block = self._blocks()[0]
        self.n_layers = len(self._blocks())
        self.heads_per_layer = (block.attn.num_heads,) * self.n_layers
        self.d_head = block.attn.head_dim
        self.d_model = block.attn.embed_dim
        self.d_embed = self.visual.proj.shape[1]

    @staticmethod
    def refusal(module: nn.Module) -> str | None:
        """Why this tower cannot read a module, or None if it can."""
        visual = getattr(module, "visual", None)
        if not isinstance(visual, VisionTransformer):
            return f"the image tower is a {type(visual).__name__}, not a VisionTransformer"
        if visual.attn_pool is not None:
            return "it pools by attention (CoCa)"
        if visual.pool_type not in ("tok", "avg"):
            return f"it pools by {visual.pool_type!r}"
        if visual.proj is None:
            return "it has no final projection"
        if not all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks):
            return "its attention blocks are custom (norms or scales inside attention)"
        return None

    def groups(self, layers: Sequence[int], *, mlps: bool) -> list[ComponentGroup]:
        """Heads and attention bias of the given layers; with `mlps` also every layer's MLP and the embedding."""
        found: list[ComponentGroup] = []
        for layer in layers:
            heads = tuple(ComponentId("head", layer, head) for head in range(self.heads_per_layer[layer]))
            found.append(ComponentGroup(f"L{layer}.heads", heads, self.d_head, self.d_head))
            found.append(ComponentGroup(f"L{layer}.bias", (ComponentId("bias", layer),), 1))
        if mlps:
            found += [ComponentGroup(f"L{i}.mlp", (ComponentId("mlp", i),), self.d_embed) for i in range(self.n_layers)]
            found.append(ComponentGroup("embedding", (ComponentId("embedding"),), self.d_embed))
        return found

    def embed(self, pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image d_embed"]:
        """`encode_image` of the module."""
        return self.module.encode_image(pixels)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def collect_features(
        self, pixels: Float[Tensor, "image 3 height width"], groups: Sequence[ComponentGroup]
    ) -> Features:
        """One forward pass, in the module's own dtype, that keeps what the components need at the readout."""
        wanted = {group.name for group in groups}
        writes: dict[str, Tensor] = {}
        stream = self.visual._embeds(pixels.to(self.visual.conv1.weight.dtype))
        if "embedding" in wanted:
            writes["embedding"] = self._readout_tokens(stream)
        for layer, block in enumerate(self._blocks()):
            # After the last attention only the readout tokens matter; CLS pooling leaves one of them.
            final = layer == self.n_layers - 1
            heads = self._head_values(
                block, stream, queries=slice(0, 1) if final and self._cls_pooled() else slice(None)
            )
            if f"L{layer}.heads" in wanted:
                writes[f"L{layer}.heads"] = self._readout_tokens(heads)
            stream = stream[:, : heads.shape[1]] + block.ls_1(block.attn.out_proj(heads.flatten(2)))
            mlp = block.ls_2(block.mlp(block.ln_2(stream)))
            if f"L{layer}.mlp" in wanted:
                writes[f"L{layer}.mlp"] = self._readout_tokens(mlp)
            stream = stream + mlp
        return self._read_out(self._readout_tokens(stream), writes, groups)

    def compute_readouts(self, groups: Sequence[ComponentGroup]) -> dict[str, Float[Tensor, "component d_embed k"]]:
        """`P^T diag(gamma) C W_O[h]` a head, `P^T diag(gamma) C b_O` a bias (LayerScale folded in), else the identity."""
        found: dict[str, Tensor] = {}
        for group in groups:
            kind = group.ids[0].kind
            if kind in ("mlp", "embedding"):
                found[group.name] = torch.eye(self.d_embed, dtype=torch.float64)[None]
                continue
            block = self._blocks()[group.ids[0].layer]
            push = self._push()
            if hasattr(block.ls_1, "gamma"):
                push = push * block.ls_1.gamma.double()
            if kind == "bias":
                found[group.name] = (push @ block.attn.out_proj.bias.double())[None, :, None]
            else:
                weight = block.attn.out_proj.weight.double().unflatten(1, (-1, self.d_head))
                found[group.name] = torch.einsum("em,mhk->hek", push, weight)
        return {name: readout.detach().cpu() for name, readout in found.items()}

    def constant(self) -> Float[Tensor, " d_embed"]:
        """`P^T beta`, float64."""
        return self.readout().T @ self.visual.ln_post.bias.detach().double().cpu()

    def readout(self) -> Float[Tensor, "d_model d_embed"]:
        """`visual.proj`, float64."""
        return self.visual.proj.detach().double().cpu()

    def why_not(self, effect: str) -> str | None:
        """Every effect fits."""
        return None

    def fold_readout(
        self, readout: Float[Tensor, "d_model d_embed"], bias: Float[Tensor, " d_embed"]
    ) -> dict[str, Tensor]:
        """`visual.proj = P'`, and `visual.ln_post.bias` moved by the smallest b with `P'^T b = bias`."""
        # The solution of least norm: P' may be close to rank-deficient after a strong output projection.
        shift = torch.linalg.lstsq(readout.T, bias[:, None], driver="gelsd").solution[:, 0]
        base = self.visual.ln_post.bias.detach().double().cpu()
        return {"visual.proj": readout, "visual.ln_post.bias": base + shift}

    def embed_final(
        self, final: Float[Tensor, "image d_model"], folded: Mapping[str, Tensor]
    ) -> Float[Tensor, "image d_embed"]:
        """`P'^T (f - beta + beta')`."""
        shift = folded["visual.ln_post.bias"].to(final) - self.visual.ln_post.bias.detach().to(final)
        return (final + shift) @ folded["visual.proj"].to(final)

    def tensor_names(self) -> dict[str, str]:
        """The `out_proj` of every layer and both projections."""
        names = {"output": "visual.proj"}
        for prefix, owner in (("", self.module), ("text.", getattr(self.module, "text", None))):
            if isinstance(getattr(owner, "text_projection", None), nn.Parameter):
                names["texts"] = f"{prefix}text_projection"
        for layer in range(self.n_layers):
            for leaf in ("weight", "bias"):
                names[f"L{layer}.{leaf}"] = f"visual.transformer.resblocks.{layer}.attn.out_proj.{leaf}"
        return names

    def _blocks(self) -> list[Any]:
        return list(self.visual.transformer.resblocks)

    def _cls_pooled(self) -> bool:
        return self.visual.pool_type == "tok"

    def _readout_tokens(self, tokens: Float[Tensor, "image token ..."]) -> Float[Tensor, "image readout ..."]:
        return tokens[:, :1] if self._cls_pooled() else tokens[:, 1:]

    def _head_values(
        self, block: Any, stream: Float[Tensor, "image token d_model"], *, queries: slice
    ) -> Float[Tensor, "image query head d_head"]:
        attention = block.attn
        normed = block.ln_1(stream)
        projected = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
        # [image, token, 3 * d_model] -> three of [image, head, token, d_head]
        query, key, value = projected.unflatten(2, (3, -1, self.d_head)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query[:, :, queries], key, value).transpose(1, 2)

    def _push(self) -> Float[Tensor, "d_embed d_model"]:
        """`P^T diag(gamma) C`: from a residual write, divided by sigma, to the embedding; float64."""
        gain = self.visual.ln_post.weight.detach().double()
        push = self.visual.proj.detach().double().T * gain
        return push - push.mean(1, keepdim=True)

    def _read_out(
        self,
        tokens: Float[Tensor, "image readout d_model"],
        writes: dict[str, Tensor],
        groups: Sequence[ComponentGroup],
    ) -> Features:
        norm = self.visual.ln_post
        pooled_first = self.visual.final_ln_after_pool
        if pooled_first:
            tokens = tokens.mean(1, keepdim=True)
        sigma = (tokens.var(-1, correction=0) + norm.eps).sqrt()
        final = norm(tokens).mean(1)
        push = self._push().to(final.dtype)
        features: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        for group in groups:
            kind = group.ids[0].kind
            if kind == "bias":
                features[group.name] = (1 / sigma).mean(1)[:, None, None]
                continue
            write = writes[group.name]
            weighted = (write / sigma.unflatten(1, (-1, *[1] * (write.ndim - 2)))).mean(1)
            features[group.name] = weighted if kind == "head" else (weighted @ push.T)[:, None]
            if kind == "head":
                values[group.name] = write.mean(1)
        return Features(features, values, final, final @ self.visual.proj)
