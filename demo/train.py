"""Train the demo CLIP from scratch: `python -m clipedit.demo.train --seed 0 --out DIR` (two CPU cores, no network).

Plain CLIP loss, Muon for the blocks' matrices and AdamW for the rest, bf16 autocast unless `--fp32`. The log (JSON
lines: step, loss and the validation figures) is written beside the checkpoint. The test split is never looked at here.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from open_clip.model import CLIP
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import world
from .muon import Fp32Muon

MODEL_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 128, "layers": 4, "head_width": 16, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3},
}
MEAN = STD = (0.5, 0.5, 0.5)
PREPROCESS_CONFIG = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest", "size": [64, 64]}
VALIDATION_SEED = 7_001


def render_examples(count: int, seed: int, **bias: float) -> tuple[UInt8[np.ndarray, "image 64 64 3"], list[str]]:
    """Draw biased scenes with captions, in two processes; the result depends on count, seed and bias only."""
    chunks = [(size, seed * 1_000 + index, bias) for index, size in enumerate(_chunk_sizes(count))]
    with ProcessPoolExecutor() as pool:
        parts = list(pool.map(_render_chunk, chunks))
    return np.concatenate([images for images, _ in parts]), [caption for _, captions in parts for caption in captions]


def _chunk_sizes(count: int, size: int = 4_000) -> list[int]:
    return [min(size, count - start) for start in range(0, count, size)]


def _render_chunk(job: tuple[int, int, dict[str, float]]) -> tuple[np.ndarray, list[str]]:
    count, seed, bias = job
    generator = np.random.default_rng(seed)
    examples = [world.draw_captioned_scene(generator, **bias) for _ in range(count)]
    return np.stack([world.render(scene) for scene, _ in examples]), [caption for _, caption in examples]


def normalise(images: UInt8[np.ndarray, "image 64 64 3"]) -> Float[Tensor, "image 3 64 64"]:
    """Pixels as the exported preprocessing gives them: (x / 255 - 0.5) / 0.5."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def compute_loss(
    model: CLIP,
    encode_image: Callable[[Tensor], Tensor],
    pixels: Float[Tensor, "image 3 64 64"],
    tokens: Int[Tensor, "image context"],
) -> Float[Tensor, ""]:
    """The symmetric CLIP loss; each distinct caption of the batch is encoded once."""
    unique, inverse = torch.unique(tokens, dim=0, return_inverse=True)
    image = F.normalize(encode_image(pixels).float(), dim=-1)
    text = F.normalize(model.encode_text(unique).float(), dim=-1)[inverse]
    logits = model.logit_scale.exp() * image @ text.T
    target = torch.arange(len(pixels))
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


@torch.no_grad()
def evaluate_zero_shot(
    model: CLIP, tokenizer: open_clip.SimpleTokenizer, scenes: list[world.Scene]
) -> dict[str, float]:
    """Zero-shot shape, place and colour accuracy, and the two-class worst group averaged over all pairs of shapes."""
    model.eval()
    pixels = normalise(np.stack([world.render(scene) for scene in scenes]))
    image = torch.cat([F.normalize(model.encode_image(chunk), dim=-1) for chunk in pixels.split(256)])

    def similarity(texts: list[str]) -> np.ndarray:
        return (image @ F.normalize(model.encode_text(tokenizer(texts)), dim=-1).T).numpy()

    by_shape = similarity([f"a photo of a {shape}" for shape in world.SHAPES])
    shape = np.array([world.SHAPES.index(scene.shape) for scene in scenes])
    place = np.array([world.PLACES.index(scene.place) for scene in scenes])
    color = np.array([list(world.COLORS).index(scene.color) for scene in scenes])
    worst = []
    for a in range(8):
        for b in range(a):
            groups = [(shape == s) & (place == p) for s in (a, b) for p in (a, b)]
            answer = np.where(by_shape[:, a] > by_shape[:, b], a, b)
            worst.append(min(float((answer[group] == shape[group]).mean()) for group in groups))
    model.train()
    return {
        "overall": float((by_shape.argmax(1) == shape).mean()),
        "worst_group": float(np.mean(worst)),
        "place": float((similarity([f"a photo of the {p}" for p in world.PLACES]).argmax(1) == place).mean()),
        "color": float((similarity([f"a photo of a {c} object" for c in world.COLORS]).argmax(1) == color).mean()),
    }


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine to zero."""
    return peak * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(options: argparse.Namespace) -> None:
    """Train one model and write it as an open_clip folder with `train.jsonl` beside the weights."""
    torch.manual_seed(options.seed)
    generator = np.random.default_rng(options.seed)
    bias = {"usual_rate": options.usual_rate, "wrong_name_rate": options.wrong_name_rate}
    images, captions = render_examples(options.images, options.seed, **bias)
    validation = world.draw_balanced_scenes(1_024, VALIDATION_SEED)
    model = CLIP(**MODEL_CONFIG)
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])
    tokens = tokenizer(captions)
    encode_image = torch.compile(model.visual) if options.compile else model.visual
    optimizers = build_optimizers(model, options.learning_rate, fp32=options.fp32)
    log, started, order = [], time.time(), np.empty(0, int)
    for step in range(options.steps):
        if len(order) < options.batch:
            order = np.concatenate([order, generator.permutation(len(images))])
        chosen, order = order[: options.batch], order[options.batch :]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, options.steps, options.learning_rate)
        # The embedded model was trained with the plain kernel; in fp32 the fused one takes a quarter less time.
        backend = SDPBackend.FLASH_ATTENTION if options.fp32 else SDPBackend.MATH
        with sdpa_kernel(backend), torch.autocast("cpu", torch.bfloat16, enabled=not options.fp32):
            loss = compute_loss(model, encode_image, normalise(images[chosen]), tokens[torch.from_numpy(chosen)])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        model.logit_scale.data.clamp_(max=math.log(100))
        if (step + 1) % options.log_every == 0:
            row = {"step": step + 1, "seconds": round(time.time() - started), "loss": round(loss.item(), 4)}
            row |= {key: round(value, 4) for key, value in evaluate_zero_shot(model, tokenizer, validation).items()}
            log.append(row)
            print(json.dumps(row), flush=True)
    save_checkpoint(model, options, log)


def save_checkpoint(model: CLIP, options: argparse.Namespace, log: list[dict[str, float]]) -> None:
    """Write the fp16 open_clip folder, the training options and the log."""
    from safetensors.torch import save_file

    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    head = {"options": {key: value for key, value in vars(options).items() if key != "out"}, "torch": torch.__version__}
    (out / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [head, *log]))


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=160_000)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--usual-rate", type=float, default=0.9)
    parser.add_argument("--wrong-name-rate", type=float, default=0.14)
    parser.add_argument("--compile", action="store_true", help="a third faster; needs a C++ compiler")
    parser.add_argument(
        "--fp32", action="store_true", help="no bf16: many times faster on CPUs without bf16 instructions"
    )
    parser.add_argument("--log-every", type=int, default=250)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
