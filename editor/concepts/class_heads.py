"""A checkpoint's own classifier stands in for class vectors where a model has no texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ImageError, ModelError, nearest_names
from ..models.model import Model


def classify_by_head(
    model: Model, classes: Sequence[str]
) -> Callable[[Float[Tensor, "image d_embed"]], Float[Tensor, "image class"]]:
    """The function from a model's embeddings to its own classifier's logits, of these classes only.

    Raises:
        ModelError: If the checkpoint has no classifier, or does not say what its classes are.
        ImageError: If it has no such class.
    """
    weight, bias = read_head(model, classes)
    return lambda embeddings: embeddings.float() @ weight.T + bias


def read_head(model: Model, classes: Sequence[str]) -> tuple[Float[Tensor, "class d_embed"], Float[Tensor, " class"]]:
    """The rows of a model's own classifier for some classes, float32.

    Raises:
        ModelError, ImageError: As `classify_by_head`.
    """
    head, names = find_head(model), class_names(model)
    known = {name: index for index, alternatives in enumerate(names) for name in reversed(alternatives)}
    for name in classes:
        if name not in known:
            raise ImageError(
                f"cannot measure {model.name}: its classifier has no class {name!r}. {nearest_names(name, known)} "
                "Give --classes, or train a head: `clipedit train-head`."
            )
    chosen = [known[name] for name in classes]
    # The wanted classes only: logits of others would win where a task has few.
    return head.weight.detach()[chosen].float().cpu(), head.bias.detach()[chosen].float().cpu()


def find_head(model: Model) -> nn.Linear:
    """The checkpoint's classifier.

    Raises:
        ModelError: If it has none.
    """
    find = getattr(model.module, "get_classifier", None)
    head: Any = find() if find is not None else None
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ModelError(
            f"cannot classify with {model.name}: it has neither texts nor a classifier. Train one on labelled images "
            "(`clipedit train-head`), or align it to a CLIP (`clipedit align`) and add --aligner."
        )
    return head


def class_names(model: Model) -> list[tuple[str, ...]]:
    """What the checkpoint calls each of its classes; ImageNet's by number of classes, by WordNet id and by words.

    Raises:
        ModelError: If it does not say.
    """
    config: Any = getattr(model.module, "pretrained_cfg", None) or {}
    if config.get("label_names"):
        return [(str(name),) for name in config["label_names"]]
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model.module)
    if subset is None:
        raise ModelError(
            f"cannot classify with {model.name}: its checkpoint does not name its {find_head(model).out_features} "
            "classes. Add `label_names` to config.json, or train a head: `clipedit train-head`."
        )
    info = ImageNetInfo(subset)
    words = [info.label_name_to_description(name).split(", ") for name in info.label_names()]
    return [(name, *alternatives) for name, alternatives in zip(info.label_names(), words, strict=True)]
