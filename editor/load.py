"""Loading: a name or a folder to a model, edited ones included, and read through an aligner where one is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from .choices import Side
from .edits.apply import apply_recipe
from .edits.recipe import Recipe, load_recipe
from .errors import AlignmentError, ModelError, describe_given, require_kinds
from .images.demo_name import is_demo
from .models.aligner import Aligner, check_aligner, load_aligner
from .models.hf.lending import lend_texts
from .models.hub.repository import BASE_FOLDER, fetch_repository, is_hub_name
from .models.loaders import has_config, load_plain_model
from .models.model import HF_PREFIX, Alignment, Model
from .scan.scan import Scan, load_scan
from .towers.aligned import AlignedTower

RECIPE_NAME, SCAN_NAME = "recipe.yaml", "scan.safetensors"


@dataclass(frozen=True)
class FolderEdit:
    """The edit of a folder that `remove-heads` wrote: its recipe, the scan it was made from, the unedited model."""

    recipe: Recipe
    scan: Scan
    base: Model


def find_missing(folder: Path) -> str | None:
    """The file that a folder lacks for its edit to be made or measured again; None if it lacks none."""
    return next((name for name in (RECIPE_NAME, SCAN_NAME) if not (folder / name).is_file()), None)


def load_edit(folder: Path) -> FolderEdit:
    """The edit of a folder that lacks nothing.

    Raises:
        ModelError: If the base that the scan names cannot be loaded.
        RecipeError, StatisticsError: If the recipe or the scan cannot be read.
    """
    scan = load_scan(folder / SCAN_NAME)
    base = load_aligned(scan.model_name, scan.pretrained, aligner=scan.aligner, tower=scan.tower)
    return FolderEdit(load_recipe(folder), scan, base)


def load_model(name: str | Path, pretrained: str | None = None, *, device: str = "cpu") -> Model:
    """Load a model.

    Args:
        name: `demo`, a folder with `open_clip_config.json` or timm's `config.json` (also one that clipedit wrote),
            `hf:FOLDER` with a Hugging Face `CLIPModel` or `SiglipModel`, or an open_clip or timm name; timm's may carry
            their tag, `vit_base_patch16_224.augreg_in21k`. `hf-hub:ORG/NAME` is a repository of any of these, and
            `hf-hub:ORG/NAME@REVISION` one branch, tag or commit of it.
        pretrained: A tag of open_clip or timm, or a checkpoint file. None with a name gives random weights.
        device: Where to put the weights.

    Raises:
        ModelError: If the model is unknown, cannot be read, holds NaN, or has no tower.
    """
    if not isinstance(name, str | Path):
        raise TypeError(
            f"cannot load a model: {describe_given('name', name)}, a name or a folder is needed. "
            'Give for example `clipedit.load_model("demo")`.'
        )
    name = str(name)
    if is_hub_name(name):
        return _load_from_hub(name, pretrained, device)
    named = is_demo(name) or name.startswith(HF_PREFIX)
    if not named and pretrained is None and (Path(name) / BASE_FOLDER).is_dir():
        return _load_direct(Path(name), device)
    model = load_plain_model(name, pretrained, device=device)
    return replace(model, read_recipe=partial(find_recipe, model.folder)) if model.folder is not None else model


def load_aligned(
    name: str | Path,
    pretrained: str | None = None,
    *,
    aligner: str | Path | None = None,
    tower: Side | None = None,
    device: str = "cpu",
) -> Model:
    """As `load_model`; read through an aligner and seen from one of its towers, where they are given."""
    model = load_model(name, pretrained, device=device)
    model = apply_aligner(model, aligner) if aligner is not None else model
    return model.with_tower(tower) if tower is not None else model


def find_recipe(folder: Path) -> Recipe | None:
    """The recipe that a folder's model was edited with; None where there is none.

    Raises:
        RecipeError: If it cannot be read.
    """
    return load_recipe(folder) if (folder / RECIPE_NAME).is_file() else None


def apply_aligner(model: Model, aligner: str | Path | Aligner, *, clip: Model | None = None) -> Model:
    """The model with the CLIP's texts: what labels, scores and recipes ask of a model works on it as on a CLIP.

    `encode_image` gives `z^a`, `encode_text` the CLIP's texts. Edits are made to the model itself: `apply_recipe` on
    the result gives an ordinary edited model.

    Args:
        aligner: What `align` made. For the image tower of a CLIP that lies alone the name of that CLIP, as
            `hf:FOLDER` or `NAME:PRETRAINED`, which lends its texts: nothing is learnt.
        clip: The CLIP that the aligner leads to; by default it is loaded by the name in the aligner.

    Raises:
        AlignmentError: If the aligner cannot be read or is of other weights.
        ModelError: If the CLIP cannot be loaded.
    """
    require_kinds("align the model", model=(model, Model))
    if model.alignment is not None or model.readout_edit is not None:
        raise AlignmentError(f"cannot align {model.name}: it is aligned or directly edited already. Give its base.")
    if not isinstance(aligner, Aligner) and model.is_alone and not Path(aligner).is_file():
        return lend_texts(model, clip or load_model(*split_name(str(aligner))))
    path = "memory" if isinstance(aligner, Aligner) else str(aligner)
    aligner = aligner if isinstance(aligner, Aligner) else load_aligner(aligner)
    clip = clip or load_model(aligner.clip["name"], aligner.clip["pretrained"])
    components = sum(len(group.ids) for group in model.tower.groups(range(model.tower.n_layers), mlps=True))
    check_aligner(aligner, model, clip, components)
    tower = AlignedTower(model.tower, aligner.maps, aligner.bias)
    # Concepts and texts of the CLIP's own folder belong to its texts.
    alignment = Alignment(model, clip, path, aligner.digest)
    return replace(model, tower=tower, folder=clip.folder, alignment=alignment)


def _load_from_hub(name: str, pretrained: str | None, device: str) -> Model:
    """A repository's model, named by its commit: what is made of it finds the same weights later."""
    if pretrained is not None:
        raise ModelError(
            f"cannot load {name} with pretrained {pretrained!r}: it is a repository that holds its own weights. Leave "
            "one out."
        )
    found = fetch_repository(name)
    own = has_config(found.folder) or (found.folder / BASE_FOLDER).is_dir()
    local = str(found.folder) if own else f"{HF_PREFIX}{found.folder}"
    return replace(load_model(local, device=device), name=found.name)


def split_name(name: str) -> tuple[str, str | None]:
    """`ViT-B-32:openai` to its two parts; paths, `hf:FOLDER` and `hf-hub:NAME` are whole."""
    model, _, pretrained = name.partition(":")
    # A path may hold a colon of its own.
    whole = Path(name).exists() or not pretrained or model in ("hf", "hf-hub")
    return (name, None) if whole else (model, pretrained)


def _load_direct(folder: Path, device: str) -> Model:
    """A folder with a directly edited model: its base, and the recipe beside it."""
    base = load_plain_model(str(folder / BASE_FOLDER), device=device)
    return replace(apply_recipe(load_recipe(folder), base), name=str(folder))
