"""The child process of `verify`: load an export with its consumer, run it, print the checks as JSON."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..editor.errors import ClipeditError
from ..editor.model import Model
from .reference import Reference, answer_images, load_reference
from .verify import Check

DISTANCE = 1e-4


@dataclass(frozen=True)
class Consumer:
    """An export, loaded: each function gives unnormalised embeddings of a batch; of a classifier, logits, and no texts."""

    runtime: str
    encode_images: Callable[[Tensor], Tensor]
    encode_texts: Callable[[Tensor], Tensor] | None
    pixels: Float[Tensor, "image 3 height width"]
    tokens: Tensor | None


def load_open_clip(folder: Path, reference: Reference) -> Consumer:
    """Load by `open_clip.create_model_and_transforms`, preprocessing and tokenizer included."""
    import open_clip

    name = f"local-dir:{folder}"
    created: Any = open_clip.create_model_and_transforms(name)
    module, _, preprocess = created
    pixels = torch.stack([preprocess(image) for image in reference.images()])
    tokens = open_clip.get_tokenizer(name)(list(reference.texts))
    module.eval()
    # Named, since CoCa normalises unless it is told not to.
    encoders = [functools.partial(encode, normalize=False) for encode in (module.encode_image, module.encode_text)]
    return Consumer(f"open_clip {open_clip.__version__}", encoders[0], encoders[1], pixels, tokens)


def load_timm(folder: Path, reference: Reference) -> Consumer:
    """Load by `timm.create_model`, with the evaluation transform that timm makes from the folder."""
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_data_config(model=module), is_training=False)
    pixels = torch.stack([transform(image) for image in reference.images()])
    return Consumer(f"timm {timm.__version__}", module, None, pixels, None)


def load_clipedit(folder: Path, reference: Reference) -> Consumer:
    """Load by `clipedit.load_model`: a base with a direct edit."""
    from .. import __version__
    from ..editor.model import load_model

    return _wrap(load_model(str(folder)), f"clipedit {__version__}", reference)


def _wrap(model: Model, runtime: str, reference: Reference) -> Consumer:
    pixels = torch.stack([model.preprocess(image) for image in reference.images()])
    if not model.has_texts:
        return Consumer(runtime, functools.partial(answer_images, model), None, pixels, None)
    tokens = model.tokenizer(list(reference.texts))
    encode_texts = functools.partial(model.module.encode_text, normalize=False)
    return Consumer(runtime, model.encode_image, encode_texts, pixels, tokens)


def load_patch(folder: Path, reference: Reference) -> Consumer:
    """Apply the patch to the base that it names, as `clipedit apply` does."""
    from .. import __version__
    from ..editor.apply import apply_recipe
    from ..editor.model import load_model
    from ..editor.recipe import load_recipe

    recipe = load_recipe(folder)
    base = recipe.document.base
    return _wrap(apply_recipe(recipe, load_model(base.model, base.pretrained)), f"clipedit {__version__}", reference)


def load_onnx(folder: Path, reference: Reference) -> Consumer:
    """Load both graphs with ONNX Runtime; preprocessing as `clip.json` says."""
    import onnxruntime

    # TF32 would cost more than the tolerance.
    options = {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}
    providers = [(name, options[name]) for name in options if name in onnxruntime.get_available_providers()]
    onnxruntime.set_default_logger_severity(4)
    session_options = build_session_options(reference)
    visual, textual = (onnxruntime.InferenceSession(folder / name, session_options, providers=providers)
                       for name in ("visual.onnx", "textual.onnx"))  # fmt: skip

    def runner(session: onnxruntime.InferenceSession) -> Callable[[Tensor], Tensor]:
        name = session.get_inputs()[0].name
        return lambda batch: torch.from_numpy(session.run(None, {name: batch.numpy()})[0])

    pixels = _preprocess_by_sidecar(folder, reference)
    runtime = f"onnxruntime {onnxruntime.__version__} on {visual.get_providers()[0]}"
    return Consumer(runtime, runner(visual), runner(textual), pixels, reference.tensors["tokens"])


def build_session_options(reference: Reference) -> Any:
    """ONNX Runtime's defaults; for half precision one level of optimisation less, which can crash the CPU provider there."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if reference.options["precision"] == "fp16":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return options


def load_torch_program(folder: Path, reference: Reference) -> Consumer:
    """Load both programs with `torch.export.load`; preprocessing as `clip.json` says."""
    from .torch_program import TEXTUAL_NAME, VISUAL_NAME

    visual, textual = (torch.export.load(folder / name).module() for name in (VISUAL_NAME, TEXTUAL_NAME))
    pixels = _preprocess_by_sidecar(folder, reference)
    return Consumer(f"torch {torch.__version__}", visual, textual, pixels, reference.tensors["tokens"])


def _preprocess_by_sidecar(folder: Path, reference: Reference) -> Tensor:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from .onnx_folder import SIDECAR_NAME

    sidecar = json.loads((folder / SIDECAR_NAME).read_text(encoding="utf-8"))
    preprocess: Any = image_transform_v2(PreprocessCfg(**sidecar["preprocess_cfg"]), is_train=False)
    return torch.stack([preprocess(image) for image in reference.images()])


CONSUMERS = {
    "open-clip": load_open_clip,
    "timm": load_timm,
    "clipedit": load_clipedit,
    "onnx": load_onnx,
    "torch-export": load_torch_program,
    "patch": load_patch,
}


@torch.no_grad()
def compute_checks(consumer: Consumer, reference: Reference) -> list[Check]:
    """Batches of one and of all, twice; against the edited model, and away from the base."""
    checks, found = [], {}
    limits, exact = reference.limits, reference.options["precision"] == "fp32"
    for kind, encode, batch in (("image", consumer.encode_images, consumer.pixels),
                                ("text", consumer.encode_texts, consumer.tokens)):  # fmt: skip
        if encode is None or batch is None:
            continue
        expected = reference.tensors[f"{kind}_embedding"]
        whole, again = encode(batch).float(), encode(batch).float()
        single = torch.cat([encode(batch[i : i + 1]).float() for i in range(len(batch))])
        scale = expected.norm(dim=1, keepdim=True)
        found[kind] = whole
        for size, answer in ((len(batch), whole), (1, single)):
            distance = float(((answer - expected) / scale).abs().max())
            cosine = F.cosine_similarity(answer, expected)
            if exact:
                checks.append(Check(f"{kind}, batch {size}, worst difference / norm", distance, "<=", DISTANCE))
            else:
                checks.append(Check(f"{kind}, batch {size}, mean cosine", float(cosine.mean()), ">=", limits.cosine))
            checks.append(Check(f"{kind}, batch {size}, worst cosine", float(cosine.min()), ">=", limits.cosine))
        checks.append(Check(f"{kind}, second run, worst difference", float((whole - again).abs().max()), "<=", 0.0))
    agreement = (_classify(found) == _classify({k: reference.tensors[f"{k}_embedding"] for k in found})).float().mean()
    checks.append(
        Check(
            "zero-shot agreement" if "text" in found else "agreement of the classes",
            float(agreement),
            ">=",
            limits.agreement,
        )
    )
    if "base_image_embedding" in reference.tensors:
        checks.append(_distance_to_base(found, reference))
    return checks


def _classify(embeddings: dict[str, Tensor]) -> Tensor:
    if "text" not in embeddings:
        return embeddings["image"].argmax(1)
    return (embeddings["image"] @ F.normalize(embeddings["text"], dim=1).T).argmax(1)


def _distance_to_base(found: dict[str, Tensor], reference: Reference) -> Check:
    """The export must be as far from the unedited model as the edit is: saving the unedited one is the usual mistake."""

    def distance(which: dict[str, Tensor], kind: str) -> float:
        base = reference.tensors[f"base_{kind}_embedding"]
        return float((which[kind] - base).norm() / base.norm())

    edited = {kind: reference.tensors[f"{kind}_embedding"] for kind in found}
    kind = max(found, key=lambda kind: distance(edited, kind))
    return Check(f"{kind}, distance to the unedited model", distance(found, kind), ">=", 0.5 * distance(edited, kind))


def main() -> None:
    """Print one JSON object with the checks of the folder given as the only argument."""
    folder = Path(sys.argv[1])
    try:
        reference = load_reference(folder)
        consumer = CONSUMERS[reference.target](folder, reference)
        checks = compute_checks(consumer, reference)
    except ClipeditError as error:
        sys.exit(str(error))
    answer = {"target": reference.target, "runtime": consumer.runtime, "options": reference.options,
              "checks": [asdict(check) for check in checks]}  # fmt: skip
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
