"""export: an edited model to a folder that its consumer reads, verified before it takes its final name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..editor.choices import WeightPrecision
from ..editor.errors import ExportError, require_kinds
from ..editor.files.whole import require_free_folder, staged_folder
from ..editor.images.listing import list_images
from ..editor.images.source import ImageSource
from ..editor.models.model import Model
from .graphs.adapters import Recipes, open_adapters
from .graphs.profile import Profile, require_adapters, require_graphs, require_texts
from .graphs.prune import require_constant_heads
from .pages.model_card import write_model_card
from .targets.registry import require_target
from .verify.evidence import find_verdict
from .verify.record import write_record
from .verify.reference import write_reference
from .verify.verify import Check, Verifier, lend


def export_model(
    model: Model,
    out: str | Path,
    *,
    target: str,
    precision: WeightPrecision = "fp32",
    prune: bool = False,
    calibration: ImageSource | str | Path | None = None,
    images: ImageSource | str | Path | None = None,
    switchable: Recipes | None = None,
    overwrite: bool = False,
    force: bool = False,
    verifier: Verifier | None = None,
) -> list[Check]:
    """Write a model for one consumer and verify it in a fresh process; the folder appears only if every check holds.

    Args:
        prune: Leave heads that write a constant, as `total` ablation makes them, out of the graphs.
        calibration: Images for static int8, other than those it is verified with; without them int8 is dynamic.
        images: Up to eight of them (32 in lower precision) are used to verify, beside those that an edited folder was
            verified with; by default images of the demo world.
        switchable: Bound recipes of this model, or paths of them, `NAME=RECIPE` for another name: the graphs answer as
            the model, and with `NAME.onnx_adapter` as each edit of it. Empty stands for an edited model's own recipe.
        force: Export an edit although it harms; keep an export of lower precision although it answers too differently.
        verifier: One that was entered already; where several folders are written, its imports are waited for once.

    Returns:
        The checks, each with its figure and tolerance; also in `verification.json`.

    Raises:
        ExportError: If the target is unknown or cannot hold the model, the edit harms, or the folder cannot be written.
        VerificationError: If a check fails; nothing is left under `out`.
    """
    require_kinds("export a model", model=(model, Model))
    found = require_target(target, precision).chosen_for(model)
    profile, adapters = replace(found.profile, prune=prune), ()
    require_texts(profile, model)
    if switchable is not None:
        require_adapters(profile)
        model, adapters = open_adapters(model, switchable)
    model = found.shown(model)
    # The verdict is the recipe's own: no image is needed to refuse.
    for edited in () if force else (model, *(adapter.edited for adapter in adapters)):
        require_harmless(edited)
    if prune:
        require_graphs(profile, "--prune")
    pruned = {"pruned": require_constant_heads(model)} if prune else {}
    profile = replace(profile, calibration=_require_calibration(profile, calibration), adapters=adapters)
    options = {**profile.options(), **pruned, **({"forced": True} if force and precision != "fp32" else {})}
    require_free_folder(Path(out), overwrite=overwrite)
    with staged_folder(Path(out), overwrite=overwrite) as folder, lend(verifier) as lent:
        found.write(model, folder, profile)
        # Before reference and card: `reproduce` builds again what the writer wrote, and nothing else.
        write_record(model, folder, profile, options)
        reference = write_reference(model, folder, target=found.name, images=images, options=options, adapters=adapters)
        shift, count = reference.threshold_shift(), len(reference.images())
        write_model_card(model, folder, replace(found, profile=profile), images=count, shift=shift)
        return lent.verify(folder)


def require_harmless(model: Model) -> None:
    """Refuse a model whose recipe says that its edit harms.

    Raises:
        ExportError: With the figures.
    """
    found = find_verdict(model)
    if found is not None and found.word == "HARMS":
        raise ExportError(
            f"cannot export {model.name}: its edit harms, {found.because.rstrip('.')}. Edit again, or add --force to "
            "export it anyway."
        )


def _require_calibration(profile: Profile, images: ImageSource | str | Path | None) -> ImageSource | None:
    if images is None:
        return None
    if profile.precision != "int8":
        raise ExportError(f"cannot calibrate {profile.precision}: only int8 has ranges to set. Add --precision int8.")
    return list_images(images)
