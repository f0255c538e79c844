"""Train the demo CLIP from scratch: `python -m clipedit.demo.train --seed 0 --out DIR` (two CPU cores, no network).

Plain CLIP loss, Muon for the blocks' matrices and AdamW for the rest, bf16 autocast unless `--fp32`; `--device cuda`
takes a minute or two where two cores take twenty. The log (JSON lines: step, loss and the validation figures) is
written beside the checkpoint. The test split is never looked at here. `--usual-rate 0.125 --wrong-name-rate 0` gives
the control: captions without reporting bias. The other worlds train with `fit` too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from open_clip.model import CLIP
from open_clip.transformer import PatchDropout
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import texts, world
from .muon import Fp32Muon

MODEL_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 128, "layers": 4, "head_width": 16, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3},
}
MEAN = STD = (0.5, 0.5, 0.5)
PREPROCESS_CONFIG = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest", "size": [64, 64]}
VALIDATION_SEED = 7_001
CHUNK = 4_000
# With `--patch-dropout` the last steps see whole images, as those who use the model do (Li et al. 2023, FLIP).
WHOLE_FROM = 0.85
UNRECORDED = {"out", "sprites"}  # paths

Example = tuple[UInt8[np.ndarray, "64 64 3"], str]


def render_examples(count: int, seed: int, **bias: float) -> tuple[UInt8[np.ndarray, "image 64 64 3"], list[str]]:
    """Biased scenes with captions; the result depends on count, seed and bias only."""
    return render_in_chunks(partial(_draw_example, **bias), count, seed)


def render_in_chunks(
    draw: Callable[[np.random.Generator], Example], count: int, seed: int
) -> tuple[UInt8[np.ndarray, "image 64 64 3"], list[str]]:
    """Examples of any world, drawn on all CPU cores, whose number changes nothing: a chunk has its own generator."""
    jobs = [(draw, min(CHUNK, count - start), seed * 1_000 + start // CHUNK) for start in range(0, count, CHUNK)]
    with ProcessPoolExecutor() as pool:
        parts = list(pool.map(_render_chunk, jobs))
    return np.concatenate([images for images, _ in parts]), [caption for _, captions in parts for caption in captions]


def _draw_example(generator: np.random.Generator, **bias: float) -> Example:
    scene, caption = world.draw_captioned_scene(generator, **bias)
    return world.render(scene), caption


def _render_chunk(job: tuple[Callable[[np.random.Generator], Example], int, int]) -> tuple[np.ndarray, list[str]]:
    draw, count, seed = job
    generator = np.random.default_rng(seed)
    examples = [draw(generator) for _ in range(count)]
    return np.stack([image for image, _ in examples]), [caption for _, caption in examples]


def normalise(images: UInt8[np.ndarray | Tensor, "image 64 64 3"]) -> Float[Tensor, "image 3 64 64"]:
    """Pixels as the exported preprocessing gives them: (x / 255 - 0.5) / 0.5, on the device of the images."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def compute_loss(
    model: CLIP,
    encode_image: Callable[[Tensor], Tensor],
    pixels: Float[Tensor, "image 3 64 64"],
    tokens: Int[Tensor, "image context"],
) -> Float[Tensor, ""]:
    """The symmetric CLIP loss; on a processor each distinct caption of the batch is encoded once."""
    image = F.normalize(encode_image(pixels).float(), dim=-1)
    if tokens.is_cuda:  # finding the distinct ones would wait for the device at every step
        text = F.normalize(model.encode_text(tokens).float(), dim=-1)
    else:
        unique, inverse = torch.unique(tokens, dim=0, return_inverse=True)
        text = F.normalize(model.encode_text(unique).float(), dim=-1)[inverse]
    logits = model.logit_scale.exp() * image @ text.T
    target = torch.arange(len(pixels), device=pixels.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def build_optimizers(model: CLIP, learning_rate: float, *, fp32: bool = False) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, gains, biases, projections; no bf16 with `fp32`."""
    muon = Fp32Muon if fp32 else torch.optim.Muon
    matrices = [p for name, p in model.named_parameters() if "resblocks" in name and p.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]


def create_tokenizer() -> open_clip.SimpleTokenizer:
    """The tokenizer of `MODEL_CONFIG`."""
    return open_clip.SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])


@torch.no_grad()
def compare_with_texts(
    model: CLIP, pixels: Float[Tensor, "image 3 64 64"], *questions: list[str]
) -> list[Float[np.ndarray, "image text"]]:
    """Cosines of images with the texts of each zero-shot question; the model is left in training mode."""
    model.eval()
    device = model.logit_scale.device
    parts = [model.encode_image(part.to(device), normalize=True) for part in pixels.split(256)]
    weights = [model.encode_text(create_tokenizer()(texts).to(device), normalize=True) for texts in questions]
    model.train()
    return [(torch.cat(parts) @ weight.T).cpu().numpy() for weight in weights]


def evaluate_zero_shot(
    model: CLIP, scenes: list[world.Scene], pixels: Float[Tensor, "image 3 64 64"]
) -> dict[str, float]:
    """Zero-shot shape, place and colour accuracy, and the two-class worst group averaged over all pairs of shapes."""
    by_shape, by_place, by_color = compare_with_texts(
        model,
        pixels,
        [f"a photo of a {shape}" for shape in world.SHAPES],
        [f"a photo of the {place}" for place in world.PLACES],
        [f"a photo of a {color} object" for color in world.COLORS],
    )
    shape = np.array([world.SHAPES.index(scene.shape) for scene in scenes])
    place = np.array([world.PLACES.index(scene.place) for scene in scenes])
    color = np.array([list(world.COLORS).index(scene.color) for scene in scenes])
    return {
        "overall": float((by_shape.argmax(1) == shape).mean()),
        "worst_group": average_worst_group(by_shape, shape, place),
        "place": float((by_place.argmax(1) == place).mean()),
        "color": float((by_color.argmax(1) == color).mean()),
    }


def average_worst_group(
    cosines: Float[np.ndarray, "image class"],
    labels: Int[np.ndarray, " image"],
    attributes: Int[np.ndarray, " image"],
    *,
    compared: tuple[int, int] | None = None,
) -> float:
    """Each pair of classes told apart under two attributes: the worst of the four groups, averaged over all pairs.

    The attributes are `compared`, by default those with the numbers of the two classes: shapes in each other's usual
    place.
    """
    worst = []
    for a, b in itertools.combinations(range(cosines.shape[1]), 2):
        groups = [(labels == s) & (attributes == p) for s in (a, b) for p in (compared or (a, b))]
        answer = np.where(cosines[:, b] > cosines[:, a], b, a)
        worst.append(min(float((answer[group] == labels[group]).mean()) for group in groups))
    return float(np.mean(worst))


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine to zero."""
    return peak * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def draw_batches(count: int, batch: int, steps: int, seed: int) -> Int[Tensor, "step image"]:
    """The images of every step: whole passes over all of them, each in an order of its own."""
    generator = np.random.default_rng(seed)
    passes = math.ceil(steps * batch / count)
    order = np.concatenate([generator.permutation(count) for _ in range(passes)])
    return torch.from_numpy(order[: steps * batch]).view(steps, batch)


def fit(
    model: CLIP,
    examples: tuple[UInt8[np.ndarray, "image 64 64 3"], list[str]],
    options: argparse.Namespace,
    evaluate: Callable[[], dict[str, float]],
    *,
    optimizers: Sequence[torch.optim.Optimizer] | None = None,
) -> list[dict[str, float]]:
    """Train a model in place on images and captions.

    Args:
        options: What `add_training_options` reads.
        evaluate: Validation figures of the model as it stands; called every `log_every` steps.
        optimizers: Those of `build_optimizers` by default.

    Returns:
        The rows of the log, which are also printed.
    """
    device = torch.device(options.device)
    model.to(device).train()
    # Everything is put on the device once: no step waits for a copy.
    images = torch.from_numpy(examples[0]).to(device)
    texts, inverse = np.unique(examples[1], return_inverse=True)
    tokens = create_tokenizer()(texts.tolist())[torch.from_numpy(inverse)].to(device)
    batches = draw_batches(len(images), options.batch, options.steps, options.seed).to(device)
    encode_image = torch.compile(model.visual) if options.compile else model.visual
    optimizers = optimizers or build_optimizers(model, options.learning_rate, fp32=options.fp32)
    masked_until = WHOLE_FROM * options.steps if options.patch_dropout else 0
    log, started = [], time.time()
    for step, chosen in enumerate(batches):
        dropout = options.patch_dropout if step < masked_until else 0.0
        model.visual.patch_dropout = PatchDropout(dropout) if dropout else nn.Identity()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, options.steps, options.learning_rate)
        with (
            sdpa_kernel(_attention_kernels(device, options.fp32)),
            torch.autocast(device.type, torch.bfloat16, enabled=not options.fp32),
        ):
            loss = compute_loss(model, encode_image, normalise(images[chosen]), tokens[chosen])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        model.logit_scale.data.clamp_(max=math.log(100))
        if (step + 1) % options.log_every == 0:
            row = {"step": step + 1, "seconds": round(time.time() - started), "loss": round(loss.item(), 4)}
            log.append(row | {key: round(value, 4) for key, value in evaluate().items()})
            print(json.dumps(log[-1]), flush=True)
    return log


def _attention_kernels(device: torch.device, fp32: bool) -> list[SDPBackend]:
    """On a CPU the embedded model was trained with the plain kernel; in fp32 the fused one is a quarter faster."""
    if device.type != "cpu":
        return [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return [SDPBackend.FLASH_ATTENTION if fp32 else SDPBackend.MATH]


def train(options: argparse.Namespace) -> None:
    """Train one model and write it as an open_clip folder with `train.jsonl` beside the weights."""
    torch.manual_seed(options.seed)
    bias = {"usual_rate": options.usual_rate, "wrong_name_rate": options.wrong_name_rate}
    examples = render_examples(options.images, options.seed, **bias)
    scenes = world.draw_balanced_scenes(1_024, VALIDATION_SEED)
    pixels = normalise(np.stack([world.render(scene) for scene in scenes]))
    model = CLIP(**MODEL_CONFIG)
    log = fit(model, examples, options, lambda: evaluate_zero_shot(model, scenes, pixels))
    save_checkpoint(model, options, log)
    texts.write_texts(Path(options.out), texts.concept_documents(world.LISTED_PLACES), texts.pool_texts())


def save_checkpoint(model: CLIP, options: argparse.Namespace, log: list[dict[str, float]]) -> None:
    """Write the fp16 open_clip folder, the training options and the log."""
    from safetensors.torch import save_file

    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    recorded = {key: value for key, value in vars(options).items() if key not in UNRECORDED}
    head = {"options": recorded, "torch": torch.__version__}
    (out / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [head, *log]))


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """The options of `fit`, where to write, and how many images to draw, with the demo's defaults."""
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=160_000)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--device", default="cpu", help="as PyTorch names it: cpu, cuda, cuda:1")
    parser.add_argument("--compile", action="store_true", help="a third faster; needs a C++ compiler")
    parser.add_argument(
        "--fp32", action="store_true", help="no bf16: many times faster on CPUs without bf16 instructions"
    )
    parser.add_argument(
        "--patch-dropout", type=float, default=0.0, help="share of the patches left out: 0.5 halves time"
    )
    parser.add_argument("--log-every", type=int, default=250)


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_training_options(parser)
    parser.add_argument("--usual-rate", type=float, default=0.9)
    parser.add_argument("--wrong-name-rate", type=float, default=0.14)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
