"""Would refitting the last MLP's weights bring `distilled` nearer to `direct`? `refit_mlp.py [MODEL_FOLDER...]`

`distilled` refits the readout: `z' ~ P'^T f + c`. Here the last MLP's output weights are refitted with it, in closed
form. With `sigma` frozen the embedding is linear in the MLP's hidden units `h` as well, so `(z' - z) / |z|` is
regressed on `[f, 1, h / sigma] / |z|`, giving `P'`, `c` and `M`; the change of the weights is the least `D` with `P'^T
diag(gamma) C D = M`. With `sigma` free again the readout is then fitted once more, to what the changed layer gives.
What is measured is the real model with both folded in. Calibration images fit, images of the validation split measure.
Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from methods import hold
from torch import Tensor

from clipedit.editor.components import Features
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.direct import compute_direct_embeddings, compute_edited_readouts
from clipedit.editor.edits.document import Step
from clipedit.editor.edits.held_out import Fidelity, compute_fidelity
from clipedit.editor.edits.recipe import Recipe
from clipedit.editor.images.demo import validation_source
from clipedit.editor.images.listing import list_images
from clipedit.editor.images.source import ImageSource
from clipedit.editor.load import load_model
from clipedit.editor.models.model import Model
from clipedit.editor.scan.collect import collect_features
from clipedit.editor.scan.scan import Scan, scan
from clipedit.editor.select.selectors import select_recipe
from clipedit.editor.select.tables import scanned_heads

RIDGE = 1e-6


@dataclass
class Inside:
    """What the last block gives: hidden units after activation `[image, d_mlp]`, residual stream `[image, d_model]`."""

    hidden: Tensor
    residual: Tensor


@torch.no_grad()
def collect_inside(model: Model, source: ImageSource, batch: int = 256) -> Inside:
    visual = model.module.visual
    hidden: list[Tensor] = []
    residual: list[Tensor] = []
    mlp = visual.transformer.resblocks[-1].mlp
    hooks = [
        mlp.c_proj.register_forward_pre_hook(lambda _, args: hidden.append(args[0][:, 0].double())),
        visual.ln_post.register_forward_pre_hook(lambda _, args: residual.append(_class_token(args[0]).double())),
    ]
    for start in range(0, len(source), batch):
        images = range(start, min(start + batch, len(source)))
        model.encode_image(torch.stack([model.preprocess(source.open(index)) for index in images]))
    for hook in hooks:
        hook.remove()
    return Inside(torch.cat(hidden), torch.cat(residual))


def _class_token(x: Tensor) -> Tensor:
    return x[:, 0] if x.ndim == 3 else x


def solve(design: Tensor, target: Tensor) -> Tensor:
    gram = design.T @ design
    gram += RIDGE * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram, design.T @ target)


def refit(model: Model, inside: Inside, features: Features, edited: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`P'`, `c` and the change of the last MLP's output weights."""
    visual = model.module.visual
    final, embedding = features.final.double(), features.embedding.double()
    norm, sigma = embedding.norm(dim=1, keepdim=True), _sigma(inside.residual, visual.ln_post.eps)
    design = torch.cat([final, torch.ones_like(norm), inside.hidden / sigma], dim=1) / norm
    found = solve(design, (edited.double() - embedding) / norm)
    d_model = final.shape[1]
    projection = visual.proj.detach().double() + found[:d_model]
    gain = visual.ln_post.weight.detach().double()
    centred = torch.eye(d_model, dtype=torch.float64) - 1 / d_model
    readout = projection.T @ torch.diag(gain) @ centred
    return projection, found[d_model], torch.linalg.pinv(readout) @ found[d_model + 1 :].T


def compute_final(model: Model, inside: Inside, change: Tensor) -> Tensor:
    """The normalised residual stream of the real model with the last MLP's output weights changed."""
    norm = model.module.visual.ln_post
    residual = inside.residual + inside.hidden @ change.T
    return F.layer_norm(residual, residual.shape[1:], norm.weight.double(), norm.bias.double(), norm.eps)


def _sigma(residual: Tensor, eps: float) -> Tensor:
    return (residual.var(dim=1, unbiased=False, keepdim=True) + eps).sqrt()


def cases(scanned: Scan, model: Model) -> Iterator[tuple[str, tuple[str, ...]]]:
    every = [str(head) for head in scanned_heads(scanned, model)]
    for count in (4, 8, 12, 16, 20, 24, 28):
        document = select_recipe(scanned, model, concept="location", heads=count, output_strength=0.0)
        yield f"{count} heads of highest score", document.steps[0].heads
    for layer in scanned.layers:
        yield f"all of layer {layer}", tuple(head for head in every if head.startswith(f"L{layer}H"))
    yield "all heads", tuple(every)


@torch.no_grad()
def run(name: str) -> None:
    model = load_model(name)
    sources = {"fit": hold(list_images("demo")), "held out": hold(validation_source())}
    scanned = scan(model, sources["fit"], batch_size=128, workers=0)
    features = {
        key: collect_features(model, source, layers=scanned.layers, batch_size=256)[0]
        for key, source in sources.items()
    }
    insides = {key: collect_inside(model, source) for key, source in sources.items()}
    titles = ("readout", "readout and last MLP", "the same, readout fitted again")
    columns = " | ".join(f"{title}: worst cosine | explained | of the change" for title in titles)
    print(f"\n### {name}\n\n| mean-ablated | {columns} |\n|{'---|' * 10}")
    base = select_recipe(scanned, model, concept="location", output_strength=0.0, effect="direct")
    for title, heads in cases(scanned, model):
        step: Step = base.steps[0].model_copy(update={"heads": heads})
        recipe: Recipe = bind_recipe(base.model_copy(update={"steps": (step,)}), scanned, model)
        readouts = compute_edited_readouts(recipe, model.tower)
        edited = {key: compute_direct_embeddings(recipe, readouts, features[key]).double() for key in sources}
        held = features["held out"]
        plain = fit_readout(model, features["fit"].final.double(), features["fit"], edited["fit"])
        projection, constant, change = refit(model, insides["fit"], features["fit"], edited["fit"])
        finals = {key: compute_final(model, inside, change) for key, inside in insides.items()}
        again = fit_readout(model, finals["fit"], features["fit"], edited["fit"])
        found = [
            held.final.double() @ plain[0] + plain[1],
            finals["held out"] @ projection + constant,
            finals["held out"] @ again[0] + again[1],
        ]
        rows: list[Fidelity] = [compute_fidelity(edited["held out"], one, held.embedding.double()) for one in found]
        cells = [f"{x:.4f}" for row in rows for x in (row.worst_cosine, row.explained, row.explained_change)]
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)


def fit_readout(model: Model, final: Tensor, features: Features, edited: Tensor) -> tuple[Tensor, Tensor]:
    """`P'` and `c`, from what the layers give to the edited embedding."""
    projection, norm = model.module.visual.proj.detach().double(), features.embedding.double().norm(dim=1, keepdim=True)
    design = torch.cat([final, torch.ones_like(norm)], dim=1) / norm
    found = solve(design, (edited - final @ projection) / norm)
    return projection + found[:-1], found[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["demo"])
    for name in parser.parse_args().models:
        run(name)


if __name__ == "__main__":
    main()
