"""The last linear map, `z = P^T f`, and what a plain checkpoint can hold of another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import RecipeError


@dataclass(frozen=True)
class FinalMap:
    """Where `P` is in a module, by tensor names.

    Attributes:
        width: Of the last norm's output; `f` has a constant 1 more where `P` has a bias, so that `z = P^T f` holds.
        matrix: A parameter `[width, d_embed]`.
        linear: A linear layer, whose weight is `[d_embed, width]`; its bias, if it has one, is the last row of `P`.
        shift: A tensor that adds to `f`: it holds the constants of a map without a bias.
        classifier: A linear layer after the embedding (which is then `f` itself): it takes a changed `P` and its
            constant.
    """

    module: nn.Module
    width: int
    matrix: str | None = None
    linear: str | None = None
    shift: str | None = None
    classifier: str | None = None

    @property
    def has_bias(self) -> bool:
        """Whether `f` ends in a constant 1."""
        return self.linear is not None and getattr(self.module.get_submodule(self.linear), "bias", None) is not None

    @property
    def shape(self) -> tuple[int, int]:
        """`d_model` and `d_embed`: the shape of `P`."""
        if self.matrix:
            return self.width, self.module.get_parameter(self.matrix).shape[1]
        d_embed = self.module.get_parameter(f"{self.linear}.weight").shape[0] if self.linear else self.width
        return self.width + self.has_bias, d_embed

    def extend(self, final: Float[Tensor, "image width"]) -> Float[Tensor, "image d_model"]:
        """`f`."""
        return torch.cat([final, final.new_ones(final.shape[0], 1)], 1) if self.has_bias else final

    def readout(self) -> Float[Tensor, "d_model d_embed"]:
        """`P`, float64."""
        return self._build(self._get)

    def project(self, final: Float[Tensor, "image d_model"]) -> Float[Tensor, "image d_embed"]:
        """`z` from `f`, where `f` is: nothing goes through the host."""
        if not (self.matrix or self.linear):
            return final
        return final @ self._build(lambda name: self.module.get_parameter(name).detach().to(final))

    def _build(self, get: Callable[[str], Tensor]) -> Tensor:
        if self.matrix:
            return get(self.matrix)
        if not self.linear:
            return torch.eye(self.width).double()
        weight = get(f"{self.linear}.weight").T
        return torch.cat([weight, get(f"{self.linear}.bias")[None]]) if self.has_bias else weight

    def why_not_distilled(self) -> str | None:
        """What is missing for another `P` and a constant, or None."""
        if self.classifier or self.has_bias or ((self.matrix or self.linear) and self.shift):
            return None
        return "it has no final linear map that could hold the refitted readout"

    def fold(self, readout: Float[Tensor, "d_model d_embed"], bias: Float[Tensor, " d_embed"]) -> dict[str, Tensor]:
        """Tensors for which the embedding (for a classifier, what it sees of it) is `readout.T @ f + bias`.

        Raises:
            RecipeError: If the module has none.
        """
        reason = self.why_not_distilled()
        if reason is not None:
            raise RecipeError(f"cannot refit the readout: {reason}. Use --effect total or --effect direct.")
        if self.classifier:
            weight, old = self._get(f"{self.classifier}.weight"), self._get(f"{self.classifier}.bias")
            # The new logits are `W (P'^T f + c) + b`.
            return {f"{self.classifier}.weight": weight @ readout.T, f"{self.classifier}.bias": old + weight @ bias}
        if self.has_bias:
            # The last row of `P` belongs to the constant 1 in `f`: it is the bias.
            return {f"{self.linear}.weight": readout[:-1].T, f"{self.linear}.bias": readout[-1] + bias}
        # The solution of least norm: P' may be close to rank-deficient after a strong output projection.
        shift = torch.linalg.lstsq(readout.T, bias[:, None], driver="gelsd").solution[:, 0]
        assert self.shift is not None
        plain = {self.matrix: readout} if self.matrix else {f"{self.linear}.weight": readout.T}
        return {**plain, self.shift: self._get(self.shift) + shift}

    def embed(
        self, final: Float[Tensor, "image d_model"], folded: Mapping[str, Tensor]
    ) -> Float[Tensor, "image d_embed"]:
        """The embedding with `fold`'s tensors in place; for a classifier, the part that its new logits stand for."""
        if self.classifier:
            weight, old = self._get(f"{self.classifier}.weight"), self._get(f"{self.classifier}.bias")
            logits = final @ folded[f"{self.classifier}.weight"].to(final).T
            seen = logits + (folded[f"{self.classifier}.bias"].cpu() - old).to(final)
            # Logits say only what the classifier's rows span; the rest of an embedding it never sees.
            return seen @ torch.linalg.pinv(weight).T.to(final)
        if self.has_bias:
            weight, bias = folded[f"{self.linear}.weight"].to(final), folded[f"{self.linear}.bias"].to(final)
            return final[:, :-1] @ weight.T + bias
        assert self.shift is not None
        # Both in the stored type before they are subtracted: an unchanged shift is then exactly zero.
        shifted = final + (folded[self.shift].cpu() - self._get(self.shift).to(folded[self.shift].dtype)).to(final)
        matrix = folded[self.matrix] if self.matrix else folded[f"{self.linear}.weight"].T
        return shifted @ matrix.to(final)

    def names(self) -> dict[str, str]:
        """`output`, or `output.weight` and `.bias`: what a projection of the output is folded into; and the rest."""
        rest = {"norm": self.shift} if self.shift else {}
        if self.classifier:
            rest |= {f"classifier.{leaf}": f"{self.classifier}.{leaf}" for leaf in ("weight", "bias")}
        if self.matrix:
            return {"output": self.matrix, **rest}
        leaves = ("weight", "bias") if self.has_bias else ("weight",) if self.linear else ()
        return {**{f"output.{leaf}": f"{self.linear}.{leaf}" for leaf in leaves}, **rest}

    def _get(self, name: str) -> Tensor:
        return self.module.get_parameter(name).detach().double().cpu()
