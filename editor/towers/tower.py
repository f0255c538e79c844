"""What the other stages may ask of an architecture: the protocol that every tower has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from ..components import ComponentGroup, Features, TokenReading


@runtime_checkable
class Tower(Protocol):
    """What every later stage may ask of an architecture. Weights are read from the live module at call time."""

    title: ClassVar[str]
    supports: ClassVar[str]
    n_layers: int
    heads_per_layer: tuple[int, ...]
    d_head: int
    d_model: int  # width of f
    d_embed: int

    def __init__(self, module: nn.Module) -> None: ...

    @staticmethod
    def refusal(module: nn.Module) -> str | None:
        """Why this tower cannot read a module, or None if it can."""
        ...

    def groups(self, layers: Sequence[int], *, mlps: bool) -> list[ComponentGroup]:
        """The components of some layers, in a fixed order; with `mlps` also every MLP and the embedding."""
        ...

    def embed(self, pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image d_embed"]:
        """The embedding by the module's own code, unnormalised."""
        ...

    def collect_features(self, pixels: Tensor, groups: Sequence[ComponentGroup]) -> Features:
        """One forward pass over preprocessed pixels `[image, 3, height, width]`."""
        ...

    def compute_readouts(self, groups: Sequence[ComponentGroup]) -> dict[str, Float[Tensor, "component d_embed k"]]:
        """The fixed readouts `R` of the groups' components, float64."""
        ...

    def constant(self) -> Float[Tensor, " d_embed"]:
        """What the embedding holds of no component: the last norm's bias, read out."""
        ...

    def readout(self) -> Float[Tensor, "d_model d_embed"]:
        """`P`, the map from the last norm's output to the embedding: `z = P.T @ f`, float64."""
        ...

    def why_not(self, effect: str) -> str | None:
        """Why `total` or `distilled` cannot enter this architecture, or None: what the module lacks."""
        ...

    def fold_readout(
        self, readout: Float[Tensor, "d_model d_embed"], bias: Float[Tensor, " d_embed"]
    ) -> dict[str, Tensor]:
        """Checkpoint tensors, float64, for which the embedding is `readout.T @ f + bias`, `f` as before.

        Raises:
            RecipeError: If `why_not("distilled")`.
        """
        ...

    def embed_final(self, final: Tensor, folded: Mapping[str, Tensor]) -> Float[Tensor, "image d_embed"]:
        """The embedding that `fold_readout`'s tensors give, from this model's own `f` `[image, d_model]`."""
        ...

    def tensor_names(self) -> dict[str, str]:
        """Where edits go: `L3.weight`, `L3.bias` (`W_O`, `b_O` of a layer), `output` (`P`), `texts` (the text tower's
        `P`).

        Projections that are linear layers are `output.weight` `[d_embed, d_model]` and `output.bias` instead; so for
        `texts`. `norm` is the bias that `fold_readout` moves, where it moves one of the last norm.
        """
        ...


@runtime_checkable
class SpatialTower(Protocol):
    """What heatmaps and segmentation ask of a tower besides: image towers all have it."""

    def project_directions(
        self, directions: Float[Tensor, "text d_embed"], layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "head text k"]]:
        """`R^T t` of every head of some layers, float64, without the readouts: only the directions are pushed down."""
        ...

    def collect_token_shares(self, pixels: Tensor, seen: Mapping[int, Float[Tensor, "head text k"]]) -> TokenReading:
        """One forward pass that splits `seen . u` of every head of some layers into what it took from each token.

        Args:
            seen: By layer, vectors in the features' space: `R^T t` for a text `t`, as `project_directions` gives them.
        """
        ...
