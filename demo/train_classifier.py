"""Train a shape classifier on the biased world: `python -m clipedit.demo.train_classifier --seed 0 --out DIR`.

A timm `VisionTransformer` without texts, as people have them: it names the shape, and in its training images shapes are
mostly in their usual place, so it leans on places. As timm's `vit_*_clip_*_ft_*` are, it is fine-tuned from the image
tower of a CLIP, by default the demo's (`--trunk` for another one, `--trunk none` from scratch, which takes hours).
`clipedit align` then gives it a CLIP's texts. What is written is timm's own layout
(`timm.create_model("local-dir:DIR")`), fp16, with `train.jsonl` beside it. The test split is never looked at here.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from timm.models import save_for_hf
from torch import Tensor, nn

from ..editor.load import load_model
from ..editor.models.model import Model
from . import world
from .train import MEAN, STD, VALIDATION_SEED, normalise

ARCHITECTURE = "vit_base_patch16_clip_224"
MODEL_ARGS = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 8, "mlp_ratio": 2.0}
CLIP_NAMES = {
    "conv1.": "patch_embed.proj.",
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "ln_pre.": "norm_pre.",
    "ln_post.": "norm.",
    "transformer.resblocks.": "blocks.",
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj.": "attn.proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}


def draw_biased_scenes(generator: np.random.Generator, count: int, *, usual_rate: float) -> list[world.Scene]:
    """Shapes at random, each in its usual place at `usual_rate`, else in any other."""
    scenes = []
    for shape in map(str, generator.choice(world.SHAPES, count)):
        others = [place for place in world.PLACES if place != world.USUAL_PLACE[shape]]
        usual = generator.random() < usual_rate
        scenes.append(
            world.draw_scene(generator, shape, world.USUAL_PLACE[shape] if usual else generator.choice(others))
        )
    return scenes


def render_scenes(scenes: list[world.Scene]) -> tuple[UInt8[np.ndarray, "image 64 64 3"], Tensor]:
    """Images, and the index of each one's shape."""
    images = np.stack([world.render(scene) for scene in scenes])
    return images, torch.tensor([world.SHAPES.index(scene.shape) for scene in scenes])


def create_classifier(trunk: Model | None) -> nn.Module:
    """A classifier of shapes: the image tower of a CLIP of the demo's architecture, or random weights; its head is
    zeros.
    """
    model: Any = timm.create_model(ARCHITECTURE, num_classes=len(world.SHAPES), **MODEL_ARGS)
    nn.init.zeros_(model.head.weight)
    if trunk is not None:
        state = {}
        for name, tensor in trunk.module.visual.state_dict().items():
            for old, new in CLIP_NAMES.items():
                name = name.replace(old, new)
            state[name] = tensor
        state.pop("proj")
        state = {name: tensor.reshape(model.state_dict()[name].shape) for name, tensor in state.items()}
        missing = model.load_state_dict(state, strict=False)
        assert missing.missing_keys == ["head.weight", "head.bias"] and not missing.unexpected_keys
    return model


def train_classifier(
    model: nn.Module, *, steps: int, batch: int, learning_rate: float, usual_rate: float, seed: int, log_every: int = 10
) -> list[dict[str, float]]:
    """Cross-entropy on freshly drawn scenes, AdamW; changes the model and returns the log."""
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    validation, answers = render_scenes(world.draw_balanced_scenes(256, VALIDATION_SEED))
    log, started = [], time.time()
    for step in range(steps):
        images, labels = render_scenes(draw_biased_scenes(generator, batch, usual_rate=usual_rate))
        loss = F.cross_entropy(model.train()(normalise(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
        if (step + 1) % log_every == 0:
            row = {"step": step + 1, "seconds": round(time.time() - started), "loss": round(loss.item(), 4)}
            if (step + 1) % (5 * log_every) == 0 or step + 1 == steps:
                row["balanced"] = round(float((_predict(model, normalise(validation)) == answers).float().mean()), 4)
            log.append(row)
            print(json.dumps(row), flush=True)
    return log


def save_classifier(model: nn.Module, out: Path, log: list[dict[str, Any]]) -> None:
    """Write timm's layout, fp16, with the shapes' names in its configuration, and the log."""
    config = {
        "input_size": (3, 64, 64),
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "label_names": list(world.SHAPES),
        "fixed_input_size": True,
    }
    save_for_hf(model.eval().half(), str(out), model_config=config, model_args=MODEL_ARGS, safe_serialization=True)
    (out / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))


@torch.no_grad()
def _predict(model: nn.Module, pixels: Float[Tensor, "image 3 64 64"]) -> Tensor:
    model.eval()
    return torch.cat([model(chunk).argmax(1) for chunk in pixels.split(128)])


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument(
        "--trunk", default="demo", help="an open_clip folder of the demo's architecture, `demo` or `none`"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=7e-4)
    parser.add_argument("--usual-rate", type=float, default=0.6)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model = create_classifier(None if options.trunk == "none" else load_model(options.trunk))
    log = train_classifier(
        model,
        steps=options.steps,
        batch=options.batch,
        learning_rate=options.learning_rate,
        usual_rate=options.usual_rate,
        seed=options.seed,
    )
    head = {"options": {key: value for key, value in vars(options).items() if key != "out"}, "torch": torch.__version__}
    save_classifier(model, Path(options.out), [head, *log])


if __name__ == "__main__":
    main()
