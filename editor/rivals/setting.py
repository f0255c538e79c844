"""What a rival method is given, and what it gives back: tensors of a checkpoint, or something to do at inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..components import Features
from ..concepts.class_weights import DEFAULT_TEMPLATES, compute_class_weights
from ..concepts.concepts import Concept
from ..concepts.queries import encode_unit
from ..edits.apply import compute_edited_tensors, fold_projection
from ..edits.bind import bind_recipe, check_effect
from ..edits.document import RecipeDocument
from ..errors import ImageError
from ..images.source import ImageSource, LabelledImages
from ..models.model import Model
from ..scan.collect import LabelledEmbeddings, collect_features
from ..scan.features import CachedFeatures, image_keys
from ..scan.scan import Scan
from ..select.selectors import select_recipe
from ..select.whose_heads import HeldConcepts

# Relative to the largest singular value: below it a direction is rounding.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Rival:
    """What a method makes of a model.

    Attributes:
        image: Tensors of the checkpoint that replace the readout of images, float64; none where it stays.
        texts: Likewise, of the readout of texts.
        inference: What has to be done to embeddings besides, which no checkpoint can hold; None where nothing has.
    """

    image: Mapping[str, Tensor] = field(default_factory=dict)
    texts: Mapping[str, Tensor] = field(default_factory=dict)
    inference: Callable[[Tensor], Tensor] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether an ordinary checkpoint holds all of it."""
        return self.inference is None

    def apply(self, model: Model) -> Model:
        """The model with the tensors replaced; its images still lack what is done at inference."""
        return model.with_tensors({**self.image, **self.texts})

    def embed(self, model: Model, features: Features) -> Float[Tensor, "image d_embed"]:
        """Embeddings under the method, from features of the unedited model."""
        found = model.tower.embed_final(features.final, self.image) if self.image else features.embedding
        return found if self.inference is None else self.inference(found)


@dataclass(frozen=True)
class Setting:
    """What a method may look at; never the images that it is reported on.

    Attributes:
        concept: What is to go.
        classes: The words of the classes that are told apart.
        templates: Their prompts.
        images: Unlabelled images, for methods that look at pixels.
        task: Labelled images, for methods that are fitted to classes.
        attribute: The same images with the instances of the concept as their classes.
        retention: A second task on the same images, on which nothing should change.
    """

    model: Model
    scan: Scan
    concept: Concept
    classes: tuple[str, ...]
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    images: ImageSource | None = None
    task: LabelledImages | None = None
    attribute: LabelledImages | None = None
    retention: LabelledImages | None = None

    @cached_property
    def known(self) -> HeldConcepts:
        """What the heads of the model hold."""
        return HeldConcepts(self.scan, self.model)

    @cached_property
    def default(self) -> RecipeDocument:
        """The edit that the tool itself would make, in the readout, where every method here acts."""
        return select_recipe(self.scan, self.model, concept=self.concept, known=self.known, effect="distilled")

    @property
    def instances(self) -> list[tuple[str, ...]]:
        """The texts of every instance; of a plain list each text is one."""
        return list((self.concept.instances or {text: (text,) for text in self.concept.texts}).values())

    @cached_property
    def pairs(self) -> Float[Tensor, "context instance d_embed"]:
        """Unit embeddings of prompts that differ in the concept only: by row, one class in one wording.

        Instances with more wordings than the shortest one lend their first.
        """
        parts = self.instances
        wordings = min(map(len, parts))
        rows = [[f"a {name}, {part[index]}" for part in parts] for name in self.classes for index in range(wordings)]
        return encode_unit(self.model, [text for row in rows for text in row]).unflatten(0, (len(rows), len(parts)))

    @cached_property
    def labelled(self) -> tuple[Features, list[int]]:
        """Features of the labelled images, and the positions of those that could be read.

        Raises:
            ImageError: If there are none.
        """
        if self.task is None:
            raise ImageError("it is fitted to labels of classes. Add --labelled DIR.")
        return collect_features(self.model, self.task.source, layers=self.scan.layers)

    @cached_property
    def cached(self) -> CachedFeatures | None:
        """The same features as selectors take them; None where there are no labelled images."""
        if self.task is None:
            return None
        (features, kept), keys = self.labelled, image_keys(self.task.source)
        row_of = {keys[index]: row for row, index in enumerate(kept)}
        return CachedFeatures(features, row_of, self.model.weights_hash, self.scan.layers)

    @cached_property
    def class_labels(self) -> Int[Tensor, " image"]:
        """The class of each of these images."""
        features_and_kept, task = self.labelled, self.task
        assert task is not None
        return torch.tensor([task.labels[index] for index in features_and_kept[1]])

    @cached_property
    def erased(self) -> LabelledEmbeddings:
        """These images with the instance of the concept that each shows.

        Raises:
            ImageError: If nothing says it, or it is said of other images.
        """
        (features, kept), attribute = self.labelled, self.attribute
        if attribute is None:
            raise ImageError("it is fitted to labels of the concept. Add --erase COLUMN to --labelled DIR.")
        if self.task is not None and self.task.source.names != attribute.source.names:
            raise ImageError("classes and the concept are labelled on different images. Give one set with both.")
        labels = torch.tensor([attribute.labels[index] for index in kept])
        return LabelledEmbeddings(features.final, features.embedding, labels)

    @cached_property
    def class_weights(self) -> Float[Tensor, "class d_embed"]:
        """Unit vectors of the classes, float64."""
        return compute_class_weights(self.model, self.classes, self.templates).double()


def ship_recipe(document: RecipeDocument, setting: Setting) -> Rival:
    """The checkpoint of a `distilled` recipe."""
    recipe = bind_recipe(document, setting.scan, setting.model)
    state = setting.model.module.state_dict()
    names = {name for key, name in setting.model.tower.tensor_names().items() if key.startswith("texts")}
    found = compute_edited_tensors(recipe, lambda name: state[name])
    texts = {name: tensor for name, tensor in found.items() if name in names}
    return Rival({name: tensor for name, tensor in found.items() if name not in names}, texts)


def ship_map(maps: Float[Tensor, "d_embed d_embed"], model: Model) -> Rival:
    """`z -> A z` of every image embedding, in the readout: `P' = P A^T`."""
    check_effect("distilled", model)
    return Rival(model.tower.fold_readout(model.tower.readout() @ maps.T, torch.zeros(len(maps)).double()))


def ship_text_map(maps: Float[Tensor, "d_embed d_embed"], model: Model) -> Rival:
    """`t -> A t` of every text embedding, in the text tower's readout."""
    state = model.module.state_dict()
    tensors = {"texts.map": maps}
    return Rival(texts=fold_projection("texts", tensors, model.tower.tensor_names(), lambda name: state[name].double()))


def span_of(columns: Float[Tensor, "d_embed column"]) -> Float[Tensor, "d_embed span"]:
    """An orthonormal basis of what some columns span."""
    left, singular, _ = torch.linalg.svd(columns, full_matrices=False)
    # Directions that others span already would come back as noise at full strength.
    return left[:, singular > ROUNDING * singular[0].clamp_min(ROUNDING)]
