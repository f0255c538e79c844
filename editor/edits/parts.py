"""Whole parts that are mean-ablated: MLPs, what CLS takes from itself, and layers (the papers' protocol).

Their features are not a head's, so weights cannot carry them one by one: they are `direct` effects, and `distilled`
refits the readout to them.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from ..components import Features
from ..errors import RecipeError, StatisticsError
from ..models.model import Model
from ..scan.collect import place
from ..scan.scan import Scan
from ..towers.tower import Tower
from ..towers.vit.open_clip_attention import require_self_attention, self_attention_groups
from .document import WHOLE_PARTS, RecipeDocument

AblatedPart = tuple[Float[Tensor, "d_embed k"], Float[Tensor, " d_embed"]]


def compute_ablated_parts(document: RecipeDocument, scan: Scan, model: Model) -> dict[str, AblatedPart]:
    """Readout and mean contribution of every part that a recipe ablates, by name: `L3.mlp`, `L3.bias`, `L3H5.self`.

    Raises:
        RecipeError: If the effect is `total`, or a head is edited and its self-attention ablated too.
        ModelError: If the architecture does not tell the part apart.
        StatisticsError: If the scan did not see the part.
    """
    names = _name_parts(document, model)
    if names and document.effect == "total":
        raise RecipeError(
            f"cannot fold the ablation of {names[0]} into the layers: its mean is known at the readout only. Use "
            "--effect direct or distilled."
        )
    readouts = compute_part_readouts(names, model.tower)
    found = {}
    for name in names:
        group, index = place(name)
        if group not in scan.statistics.groups:
            flag = "--self-attention" if name.endswith(".self") else "--mlps and --layers"
            raise StatisticsError(f"cannot bind the recipe: the scan did not see {name}. Scan with {flag}.")
        found[name] = (readouts[name], readouts[name] @ scan.statistics.mean_features(group)[index])
    return found


def ablate_parts(
    embedding: Float[Tensor, "image d_embed"],
    features: Features,
    tensors: Mapping[str, Tensor],
    readouts: Mapping[str, Tensor],
) -> Float[Tensor, "image d_embed"]:
    """`z - R u + R m` of every ablated part."""
    for name, readout in readouts.items():
        group, index = place(name)
        contribution = features.groups[group][:, index] @ readout.T.to(embedding)
        embedding = embedding - contribution + tensors[f"ablated.{name}"].to(embedding)
    return embedding


def ablated_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The parts that a bound recipe ablates."""
    return [name.removeprefix("ablated.") for name in tensors if name.startswith("ablated.")]


def compute_part_readouts(names: list[str], tower: Tower) -> dict[str, Float[Tensor, "d_embed k"]]:
    """The readouts of parts, float64; that of `L3H5.self` is the head's."""
    layers = sorted({int(name[1:].partition(".")[0].partition("H")[0]) for name in names})
    found = tower.compute_readouts(tower.groups(layers, mlps=any(name.endswith(".mlp") for name in names)))
    return {name: found[place(name)[0].replace(".self", ".heads")][place(name)[1]] for name in names}


def _name_parts(document: RecipeDocument, model: Model) -> list[str]:
    found, n_layers = [], model.tower.n_layers
    for number, step in enumerate(document.steps, 1):
        if step.target not in WHOLE_PARTS:
            continue
        if max(step.layers) >= n_layers:
            raise RecipeError(
                f"cannot use recipe {document.name}: step {number} names layer {max(step.layers)}, {model.name} has "
                f"layers 0-{n_layers - 1}. Correct `layers` in step {number}."
            )
        if step.target == "self-attention":
            found += _name_self_attention(document, step.layers, model)
        else:
            kinds = ("bias", "mlp") if step.target == "layers" else ("mlp",)
            found += [f"L{layer}.{kind}" for layer in step.layers for kind in kinds]
    return list(dict.fromkeys(found))


def _name_self_attention(document: RecipeDocument, layers: tuple[int, ...], model: Model) -> list[str]:
    tower = require_self_attention(model.tower, model.name)
    names = [str(identity) for group in self_attention_groups(tower, layers) for identity in group.ids]
    edited = {f"{head}.self" for step in document.steps for head in step.heads}
    both = sorted(edited & set(names))
    if both:
        head = both[0].removesuffix(".self")
        raise RecipeError(
            f"cannot use recipe {document.name}: {head} is edited and its self-attention ablated too. Leave one out."
        )
    return names
