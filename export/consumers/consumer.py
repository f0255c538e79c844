"""The consumers of the targets, loaded as their users load them. The child process of `verify` runs one of them.

Where a consumer is not installed, or is a server, another runtime reads the same files in its place, and the report says so.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...editor.files.tensors import tensor_reader
from ...editor.models.model import Model
from ..graphs.profile import Profile
from ..verify.reference import Reference, answer_images


@dataclass(frozen=True)
class Consumer:
    """An export, loaded.

    Attributes:
        runtime: What ran, with its version, and what it stood in for.
        encode_images: Embeddings of preprocessed pixels.
        embed_images, embed_texts: Embeddings by the consumer's own preprocessing and tokenizer.
            A classifier gives logits, and reads no texts.
        normalised: Whether `encode_images` and `embed_texts` give unit vectors.
    """

    runtime: str
    encode_images: Callable[[Tensor], Tensor]
    embed_images: Callable[[list[Image.Image]], Tensor]
    embed_texts: Callable[[list[str]], Tensor] | None
    normalised: bool = False


def load_consumer(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    """Load an export with its consumer, or with what stands in for it."""
    try:
        return _LOADERS[reference.target](folder, reference, profile)
    except ImportError as error:
        if reference.target not in _STAND_INS:
            raise
        consumer = _STAND_INS[reference.target](folder, reference, profile)
        return replace(consumer, runtime=f"{consumer.runtime}, standing in for {reference.target} ({error})")


def _load_open_clip(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    import open_clip

    name = f"local-dir:{folder}"
    created: Any = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    module, _, preprocess = created
    return _torch_consumer(f"open_clip {open_clip.__version__}", module, preprocess, tokenizer)


def _load_timm(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    """With the evaluation transform that timm makes from the folder."""
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_data_config(model=module), is_training=False)
    return Consumer(f"timm {timm.__version__}", module, _preprocessed(module, transform), None)


def _load_clipedit(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    from ...editor.models.model import load_model

    return _own_consumer(load_model(str(folder)))


def _load_patch(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    """Apply the patch to the base that it names, as `clipedit apply` does."""
    from ...editor.edits.apply import apply_recipe
    from ...editor.edits.recipe import load_recipe
    from ...editor.models.model import load_model

    recipe = load_recipe(folder)
    base = recipe.document.base
    return _own_consumer(apply_recipe(recipe, load_model(base.model, base.pretrained)))


def _own_consumer(model: Model) -> Consumer:
    from ... import __version__

    encode = functools.partial(answer_images, model)
    embed_texts = model.encode_text if model.has_texts else None
    return Consumer(f"clipedit {__version__}", encode, _preprocessed(encode, model.preprocess), embed_texts)


def _load_torch_program(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    from ..targets.torch_export import TEXTUAL_NAME, VISUAL_NAME

    visual, textual = (torch.export.load(folder / name).module() for name in (VISUAL_NAME, TEXTUAL_NAME))
    tokens = _known_tokens(reference)
    return Consumer(
        f"torch {torch.__version__}",
        visual,
        _preprocessed(visual, reference.preprocess),
        lambda texts: textual(tokens(texts)),
    )


def _load_hf(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    import transformers

    model: Any = transformers.CLIPModel.from_pretrained(folder).eval()
    processor: Any = transformers.CLIPProcessor.from_pretrained(folder)

    def encode_images(pixels: Tensor) -> Tensor:
        return _features(model.get_image_features(pixel_values=pixels))

    def embed_images(images: list[Image.Image]) -> Tensor:
        return encode_images(processor(images=images, return_tensors="pt")["pixel_values"])

    def embed_texts(texts: list[str]) -> Tensor:
        return _features(model.get_text_features(**_tokenize(processor, texts)))

    return Consumer(f"transformers {transformers.__version__}", encode_images, embed_images, embed_texts)


def _tokenize(processor: Any, texts: list[str]) -> Any:
    return processor(text=texts, return_tensors="pt", padding=True, truncation=True)


def _features(answer: Any) -> Tensor:
    """transformers 5 gives an object, 4 a tensor."""
    return getattr(answer, "pooler_output", answer)


def _load_sentence_transformers(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    import sentence_transformers

    model: Any = sentence_transformers.SentenceTransformer(str(folder), device="cpu")

    def encode_images(pixels: Tensor) -> Tensor:
        return _features(model[0].auto_model.get_image_features(pixel_values=pixels))

    def embed(inputs: Sequence[Any]) -> Tensor:
        return model.encode(list(inputs), convert_to_tensor=True)

    return Consumer(f"sentence-transformers {sentence_transformers.__version__}", encode_images, embed, embed)


def _load_fastembed(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    import fastembed

    images: Any = fastembed.ImageEmbedding("Qdrant/clip-ViT-B-32-vision", specific_model_path=str(folder / "vision"))
    texts: Any = fastembed.TextEmbedding("Qdrant/clip-ViT-B-32-text", specific_model_path=str(folder / "text"))
    return Consumer(
        f"fastembed {fastembed.__version__} on {images.model.model.get_providers()[0]}",
        _runner(images.model.model),
        lambda batch: _stack(images.embed(batch)),
        lambda batch: _stack(texts.embed(batch)),
    )


def _stack(embeddings: Any) -> Tensor:
    return torch.stack([torch.from_numpy(embedding) for embedding in embeddings])


def _load_transformers_js(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    from ..targets.node_consumer import NodeModel

    model = NodeModel(folder, {"fp32": "fp32", "fp16": "fp16", "int8": "q8"}[reference.options["precision"]])
    runtime = f"transformers.js {model.version} under Node"
    return Consumer(runtime, model.encode_images, model.embed_images, model.embed_texts)


def _load_graphs(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    """ONNX Runtime, with the model's own preprocessing and tokens: for targets that are graphs and numbers only."""
    import onnxruntime

    assert profile.visual is not None and profile.textual is not None
    half = profile.precision == "fp16"
    visual, textual = (_open_session(folder / spec.path, half=half) for spec in (profile.visual, profile.textual))
    tokens, integer = _known_tokens(reference), getattr(torch, profile.textual.integer)
    encode = _runner(visual, profile.visual.batch)
    encode_text = _runner(textual, profile.textual.batch)
    return Consumer(
        f"onnxruntime {onnxruntime.__version__} on {visual.get_providers()[0]}",
        encode,
        _preprocessed(encode, reference.preprocess),
        lambda texts: encode_text(tokens(texts).to(integer)),
        normalised=profile.visual.normalised,
    )


def _load_triton(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    consumer = _load_graphs(folder, reference, profile)
    return replace(consumer, runtime=f"{consumer.runtime}, standing in for Triton's backend")


def _load_immich(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    """Immich is a server: ONNX Runtime, and `tokenizers` with padding to the context, as it uses them."""
    inner = next(path.parent for path in sorted(folder.glob("*/config.json")))
    consumer = _load_graphs(inner, reference, profile)
    runtime = f"{consumer.runtime}, standing in for Immich"
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return replace(consumer, runtime=f"{runtime}; its tokenizer.json was not read, which needs `tokenizers`")
    assert profile.textual is not None
    context = json.loads((inner / "config.json").read_text(encoding="utf-8"))["text_cfg"].get("context_length", 77)
    pad = json.loads((inner / "textual" / "tokenizer_config.json").read_text(encoding="utf-8"))["pad_token"]
    tokenizer: Any = Tokenizer.from_file(str(inner / "textual" / "tokenizer.json"))
    tokenizer.enable_padding(length=context, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    tokenizer.enable_truncation(max_length=context)
    session = _open_session(inner / profile.textual.path, half=profile.precision == "fp16")
    encode = _runner(session, batch=1)

    def embed_texts(texts: list[str]) -> Tensor:
        return encode(torch.tensor([item.ids for item in tokenizer.encode_batch(texts)], dtype=torch.int32))

    return replace(consumer, runtime=runtime, embed_texts=embed_texts)


def _load_hf_by_open_clip(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    """The weights under open_clip's names again; the tokenizer and processor files are not read."""
    import open_clip
    from safetensors import safe_open

    from ...editor.models.hf_names import clip_names, convert_from_hf

    path = next(folder.rglob("model.safetensors"))
    with safe_open(path, framework="pt") as stream:
        names = list(stream.keys())
    read = tensor_reader(path)
    config = reference.config["model_cfg"]
    module = open_clip.CLIP(**{k: v for k, v in config.items() if k not in ("custom_text",)})
    entries = clip_names(config["vision_cfg"]["layers"], config["text_cfg"]["layers"])
    module.load_state_dict(convert_from_hf({name: read(name).float() for name in names}, entries))
    tokenizer = open_clip.SimpleTokenizer(context_length=module.context_length)
    runtime = f"open_clip {open_clip.__version__}, reading the weights only"
    return _torch_consumer(runtime, module, reference.preprocess, tokenizer)


def _torch_consumer(runtime: str, module: Any, preprocess: Callable[[Image.Image], Tensor], tokenizer: Any) -> Consumer:
    module.eval()
    # Named, since CoCa normalises unless it is told not to.
    encode = functools.partial(module.encode_image, normalize=False)
    return Consumer(
        runtime,
        encode,
        _preprocessed(encode, preprocess),
        lambda texts: module.encode_text(tokenizer(texts), normalize=False),
    )


def _preprocessed(
    encode: Callable[[Tensor], Tensor], preprocess: Callable[[Image.Image], Tensor]
) -> Callable[[list[Image.Image]], Tensor]:
    return lambda images: encode(torch.stack([preprocess(image) for image in images]))


def _known_tokens(reference: Reference) -> Callable[[list[str]], Tensor]:
    """The model's own tokens of the reference's texts: for targets without a tokenizer."""
    tokens = dict(zip(reference.texts, reference.tensors["tokens"], strict=True))
    return lambda texts: torch.stack([tokens[text] for text in texts])


def _open_session(path: Path, *, half: bool) -> Any:
    """ONNX Runtime's defaults; for half precision one level of optimisation less, which can crash the CPU provider there."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    if half:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    # TF32 would cost more than the tolerance.
    options = {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}
    providers = [(name, options[name]) for name in options if name in onnxruntime.get_available_providers()]
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime.InferenceSession(path, settings, providers=providers)


def _runner(session: Any, batch: int | None = None) -> Callable[[Tensor], Tensor]:
    """A graph as a function of one tensor; one of a fixed batch is run as often as needed."""
    name = session.get_inputs()[0].name

    def run(inputs: Tensor) -> Tensor:
        return torch.cat(
            [
                torch.from_numpy(session.run(None, {name: part.numpy()})[0])
                for part in inputs.split(batch or len(inputs))
            ]
        )

    return run


Loader = Callable[[Path, Reference, Profile], Consumer]
_LOADERS: dict[str, Loader] = {
    "open-clip": _load_open_clip,
    "timm": _load_timm,
    "clipedit": _load_clipedit,
    "hf": _load_hf,
    "sentence-transformers": _load_sentence_transformers,
    "immich": _load_immich,
    "fastembed": _load_fastembed,
    "transformers-js": _load_transformers_js,
    "triton": _load_triton,
    "onnx": _load_graphs,
    "torch-export": _load_torch_program,
    "patch": _load_patch,
}
_STAND_INS: dict[str, Loader] = {
    "hf": _load_hf_by_open_clip,
    "sentence-transformers": _load_hf_by_open_clip,
    "fastembed": _load_graphs,
    "transformers-js": _load_graphs,
}
