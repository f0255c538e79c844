"""align: learn an aligner on unlabelled images, with early stopping, and from where an interrupted run stopped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import AlignmentError, ModelError, require_kinds
from ..files.tensors import load_tensors
from ..files.whole import save_tensors
from ..images.batches import load_batches
from ..images.listing import list_images
from ..images.source import ImageSource
from ..models.aligner import (
    Aligner,
    compute_aligned,
    compute_alignment_loss,
    compute_report,
    describe_model,
    fit_shared_map,
)
from ..models.decompose import decompose
from ..models.model import Model
from .align_options import AlignOptions
from .collect import collect_embeddings
from .tally import Progress

STATE_KIND = "clipedit-alignment-state-1"
LEAST_IMAGES = 256
STATE_EVERY = 100


@dataclass
class _State:
    """Everything that a run needs to go on: the same bits as if it had not stopped."""

    maps: Float[Tensor, "map d_clip d_own"]
    bias: Float[Tensor, " d_clip"]
    step: int = 0
    best: float = float("inf")
    since_best: int = 0
    log: list[dict[str, float]] = field(default_factory=list)
    moments: dict[str, Tensor] = field(default_factory=dict)


def align(
    model: Model,
    clip: Model,
    images: str | Path | ImageSource,
    *,
    options: AlignOptions | None = None,
    state_path: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Aligner:
    """Learn maps from a model's components to a CLIP's joint space, on unlabelled images.

    The CLIP's embeddings are computed once (`images * d_clip` floats); the model's contributions are computed for every
    batch and dropped.

    Args:
        model: Any model with a tower; its own texts, if it has any, are not used.
        state_path: Where the run's state is kept every 100 batches; needed by `resume`, removed at the end.
        progress: Called with batches done and in total.

    Raises:
        AlignmentError: If `clip` has no texts, there are fewer than 256 images, the loss is not finite, or the state is
            that of another run.
        ImageError: If images cannot be read.
    """
    require_kinds("learn an aligner", model=(model, Model), clip=(clip, Model))
    options = options or AlignOptions()
    if not clip.has_texts:
        raise AlignmentError(f"cannot align to {clip.name}: it has no text tower. Give a CLIP as --to.")
    source = list_images(images)
    if len(source) < LEAST_IMAGES:
        raise AlignmentError(f"cannot align on {len(source)} images: at least {LEAST_IMAGES} are needed. Add images.")
    targets, kept = collect_embeddings(clip, source, batch_size=options.batch_size)
    # `kept` leaves out what could not be read: from here on indices are positions in it. The seed alone decides which
    # images are held out, so a resumed run holds out the same ones.
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(options.seed)).tolist()
    held_out = max(1, round(options.held_out * len(kept)))
    testing, training = order[:held_out], order[held_out:]
    run = {
        "base": describe_model(model),
        "clip": describe_model(clip),
        "fingerprint": source.fingerprint(),
        "options": vars(options),
        "images": {"training": len(training), "held_out": len(testing)},
    }
    data = _Data(model, source.subset(kept), F.normalize(targets, dim=1), options)
    state = _load_state(state_path, run) if resume and state_path is not None else _start(data, training)
    for optimizer in _train(state, data, training, progress):
        if state_path is not None and state.step % STATE_EVERY == 0:
            _save_state(state_path, state, optimizer, run)
    aligned = torch.cat([compute_aligned(batch, state.maps, state.bias) for batch, _ in data.batches(testing)])
    report = compute_report(aligned, data.targets[testing], data.targets[training].mean(0), state.maps)
    # Only now: until the report is made, an interrupted run can still go on.
    if state_path is not None:
        state_path.unlink(missing_ok=True)
    base, to = run.pop("base"), run.pop("clip")
    return Aligner(state.maps, state.bias, base, to, {**run, "log": state.log, "report": report})


@dataclass(frozen=True)
class _Data:
    model: Model
    source: ImageSource
    targets: Float[Tensor, "image d_clip"]
    options: AlignOptions

    def batches(self, indices: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Contributions `[image, component, d_own]` and targets, in order."""
        source, size = self.source.subset(indices), self.options.batch_size
        for batch in load_batches(source, self.model.preprocess, batch_size=size):
            contributions = decompose(self.model, batch.pixels).contributions.float().cpu()
            # A batch counts within the subset, and leaves out what could not be read.
            yield contributions, self.targets[[indices[index] for index in batch.indices]]


def _start(data: _Data, training: list[int]) -> _State:
    """Every map starts as the one orthogonal map that fits best on as many images as its width asks for."""
    some = list(data.batches(training[: 4 * data.model.tower.d_embed]))
    # [image, component, d_own] -> [image, d_own]: the embedding without its constant.
    own = torch.cat([contributions.sum(1) for contributions, _ in some])
    turn, bias = fit_shared_map(own, torch.cat([target for _, target in some]))
    count = 1 if data.options.shared_map else some[0][0].shape[1]
    return _State(turn.repeat(count, 1, 1), bias)


def _train(state: _State, data: _Data, training: list[int], progress: Progress | None) -> Iterator[torch.optim.Adam]:
    """Change the state batch by batch, until the epochs are over or the loss has stopped falling; yields after each."""
    options = data.options
    parameters = [state.maps.requires_grad_(), state.bias.requires_grad_()]
    optimizer = torch.optim.Adam(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    _set_moments(optimizer, state)
    per_epoch = -(-len(training) // options.batch_size)
    total = per_epoch * options.epochs
    while state.step < total and state.since_best < options.patience:
        epoch, done = divmod(state.step, per_epoch)
        # A seed for each epoch: a run resumed in the middle of one draws the same order and skips what is done. `seed`
        # itself is that of the split.
        generator = torch.Generator().manual_seed(options.seed + 1 + epoch)
        order = [training[index] for index in torch.randperm(len(training), generator=generator)]
        for contributions, target in data.batches(order[done * options.batch_size :]):
            _step(state, optimizer, contributions, target, options.penalty)
            yield optimizer
            if progress is not None:
                progress(state.step, total)
            if state.since_best >= options.patience:
                break
    state.maps, state.bias = (parameter.detach() for parameter in parameters)


def _step(state: _State, optimizer: torch.optim.Adam, contributions: Tensor, target: Tensor, penalty: float) -> None:
    aligned = compute_aligned(contributions, state.maps, state.bias)
    loss = compute_alignment_loss(aligned, target, state.maps, penalty)
    if not torch.isfinite(loss):
        raise AlignmentError(f"cannot go on: the loss is {loss.item()} at batch {state.step}. Lower --learning-rate.")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    state.step += 1
    # Before `best` is lowered: this loss must be compared with those before it.
    state.since_best = 0 if loss < state.best else state.since_best + 1
    state.best = min(state.best, loss.item())
    if state.step % 10 == 0:
        state.log.append({"step": state.step, "loss": round(loss.item(), 5)})


def _set_moments(optimizer: torch.optim.Adam, state: _State) -> None:
    if not state.moments:
        return
    for name, parameter in (("maps", state.maps), ("bias", state.bias)):
        # The names are Adam's own; it counts its steps in a float tensor.
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.step)),
            **{key: state.moments[f"{name}.{key}"] for key in ("exp_avg", "exp_avg_sq")},
        }


def _save_state(path: Path, state: _State, optimizer: torch.optim.Adam, run: dict[str, Any]) -> None:
    tensors = {"maps": state.maps, "bias": state.bias}
    for name, parameter in tuple(tensors.items()):
        tensors |= {f"{name}.{key}": optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq")}
    counts = {"step": state.step, "best": state.best, "since_best": state.since_best, "log": state.log}
    save_tensors(path, tensors, STATE_KIND, {"run": run, **counts})


def _load_state(path: Path, run: dict[str, Any]) -> _State:
    if not path.is_file():
        raise AlignmentError(f"cannot resume: there is no {path}. Leave out --resume.")
    try:
        tensors, described = load_tensors(path, STATE_KIND)
    except ModelError as error:
        raise AlignmentError(f"cannot resume: {error}") from None
    # What is left of `described` are the counters of `_State`, under their own names.
    found = described.pop("run")
    for key, value in run.items():
        if found[key] != value:
            raise AlignmentError(
                f"cannot resume from {path}: its {key} was {found[key]}, now it is {value}. "
                "Give the same model, CLIP, images and options, or leave out --resume."
            )
    return _State(tensors.pop("maps"), tensors.pop("bias"), **described, moments=tensors)
