"""Swin, MaxViT and CoAtNet: other towers' tests at reduced width, everything random that could hide a mistake."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import clipedit
from clipedit import ModelError, RecipeError
from clipedit.editor.components import HeadId
from clipedit.editor.edits.apply import apply_recipe
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.look.spatial import compute_token_shares, head_ids
from clipedit.editor.models.decompose import decompose
from clipedit.editor.models.model import Model
from clipedit.editor.scan.scan import Scan
from clipedit.editor.scan.statistics import add_features, empty_statistics
from clipedit.editor.towers.build import build_tower
from clipedit.editor.towers.staged.spatial_staged import _place

PIXELS = (3, 3, 64, 64)
TEXT = {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}


def swin(**options: Any) -> nn.Module:
    arguments = {
        "img_size": 64,
        "embed_dim": 24,
        "depths": (2, 2, 2, 2),
        "num_heads": (1, 2, 4, 8),
        "window_size": 4,
        "num_classes": 5,
    }
    return timm.models.SwinTransformer(**{**arguments, **options})


def maxvit(name: str, *, blocks: tuple[str, ...] = ("M", "M", "M"), **options: Any) -> nn.Module:
    sizes = {"embed_dim": (32, 64, 64), "depths": (1, 1, 2), "stem_width": 32}
    return timm.create_model(name, img_size=64, num_classes=3, block_type=blocks, **sizes, **options)


def clip_over_swin(*, bias: bool) -> nn.Module:
    """open_clip's CLIP over a Swin, its trunk exchanged for a small one."""
    vision = {
        "timm_model_name": "test_vit",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "timm_proj_bias": bias,
        "image_size": 64,
    }
    module: Any = open_clip.CustomTextCLIP(20, vision, TEXT)
    module.visual.trunk = swin(num_classes=0)
    module.visual.head.proj = nn.Linear(192, 20, bias=bias)
    return module


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "Swin": swin,
    "Swin, grid and windows that do not divide": lambda: swin(img_size=(56, 72), window_size=3),
    "Swin, heads wider than the stage's share": lambda: swin(head_dim=24, num_classes=0),
    "Swin, three stages": lambda: swin(depths=(1, 1, 2), num_heads=(1, 2, 4)),
    "CLIP over Swin": lambda: clip_over_swin(bias=False),
    "CLIP over Swin, projection with bias": lambda: clip_over_swin(bias=True),
    "MaxViT, TensorFlow's": lambda: maxvit("maxvit_tiny_tf_224"),
    "MaxViT, timm's": lambda: maxvit("maxvit_tiny_rw_224"),
    "MaxViT, LayerScale": lambda: maxvit("maxvit_tiny_rw_224", transformer_init_values=1e-1),
    "MaxViT, channels first": lambda: maxvit("maxvit_rmlp_pico_rw_256", transformer_use_nchw_attn=True),
    "MaxViT, overlapping average pool": lambda: maxvit("maxvit_tiny_rw_224", conv_pool_type="avg"),
    "MaxxViT": lambda: maxvit("maxxvit_rmlp_nano_rw_256"),
    "MaxxViT 2, no window attention": lambda: maxvit("maxxvitv2_nano_rw_256"),
    "CoAtNet": lambda: maxvit("coatnet_0_rw_224", blocks=("C", "T", "T")),
    "CoAtNet, relative positions by an MLP": lambda: maxvit("coatnet_rmlp_nano_rw_224", blocks=("C", "T", "T")),
    "CoAtNeXt": lambda: maxvit("coatnext_nano_rw_224", blocks=("C", "T", "T")),
}


def random_model(family: str) -> Model:
    """Random gains, biases, running statistics, LayerScales and position biases: nothing passes by being zero."""
    torch.manual_seed(0)
    return as_model(family, FAMILIES[family]())


def as_model(name: str, module: nn.Module) -> Model:
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if parameter.ndim == 1 or "relative_position" in key:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        for key, buffer in module.named_buffers():
            if key.endswith("running_mean"):
                buffer.copy_(torch.randn_like(buffer) * 0.3)
            if key.endswith("running_var"):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    module = module.eval()
    return Model(name, None, module, build_tower(module), {"model_cfg": {}, "preprocess_cfg": {"size": 64}})


def random_pixels(family: str) -> Tensor:
    return torch.randn(3, 3, 56, 72) if "do not divide" in family else torch.randn(*PIXELS)


@pytest.mark.parametrize("family", FAMILIES)
def test_contributions_sum_to_the_embedding(family: str, family_table: dict[str, tuple[str, int, float]]) -> None:
    model = random_model(family)
    pixels = random_pixels(family)
    parts = decompose(model, pixels)
    expected = own_embedding(model.module, pixels)
    assert relative_error(parts.embedding, expected) < 1e-5
    error = relative_error(parts.contributions.sum(1) + parts.constant, expected)
    family_table[family] = (model.tower.title, len(parts.components), error)
    assert error < 1e-5
    assert sum(identity.kind == "head" for identity in parts.components) == sum(model.tower.heads_per_layer)


@torch.no_grad()
def own_embedding(module: Any, pixels: Tensor) -> Tensor:
    """By the libraries' code alone."""
    if hasattr(module, "encode_image"):
        return module.encode_image(pixels)
    if hasattr(module.head, "pre_logits") and module.head.hidden_size:
        return module.head.norm(module.head.global_pool(module.forward_features(pixels))).flatten(1)
    return module.forward_head(module.forward_features(pixels), pre_logits=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_shares_sum_to_each_heads_contribution(family: str, check_token_shares) -> None:  # type: ignore[no-untyped-def]
    found = check_token_shares(random_model(family), random_pixels(family))
    assert found.shares.shape[2] == found.grid[0] * found.grid[1] + 1
    padded = found.shares[:, :, 0].abs().sum((0, 2)) > 0  # What windows that stick out took from nowhere.
    assert padded.any() == ("do not divide" in family)


@pytest.mark.parametrize("family", ["Swin", "MaxViT, TensorFlow's", "MaxViT, channels first", "CoAtNet"])
def test_inference_mode_changes_no_number(family: str) -> None:
    model, pixels = random_model(family), random_pixels(family)
    directions, heads = torch.randn(2, model.tower.d_embed, dtype=torch.float64), head_ids(model, [0])
    expected = decompose(model, pixels).contributions
    shares = compute_token_shares(model, pixels, directions, heads=heads).shares
    with torch.inference_mode():
        assert torch.equal(decompose(model, pixels.clone()).contributions, expected)
        assert torch.equal(compute_token_shares(model, pixels.clone(), directions, heads=heads).shares, shares)
        # The module itself may have been made there.
        module = copy.deepcopy(model.module)
        made = replace(model, module=module, tower=build_tower(module))
        assert torch.equal(compute_token_shares(made, pixels.clone(), directions, heads=heads).shares, shares)


@pytest.mark.parametrize("layer", [1, -1])
@pytest.mark.parametrize(
    "family",
    ["Swin, grid and windows that do not divide", "MaxViT, TensorFlow's", "MaxViT, channels first", "CoAtNet"],
)
def test_a_token_without_a_value_has_no_share(family: str, layer: int) -> None:
    """The norm's output is blank at one place, and so is the bias of values: nothing can be taken from there."""
    model = random_model(family)
    layer %= model.tower.n_layers
    path = model.tower.tensor_names()[f"L{layer}.weight"].removesuffix(".attn.proj.weight")
    block: Any = model.module.get_submodule(path)
    with torch.no_grad():
        block.attn.qkv.bias.zero_()
    first = isinstance(block.attn.proj, nn.Conv2d)

    def blank(_: nn.Module, __: Any, result: Tensor) -> Tensor:
        result = result.clone()
        (result.movedim(1, -1) if first else result)[:, 1, 0] = 0
        return result

    handle = block.norm1.register_forward_hook(blank)
    directions = torch.randn(1, model.tower.d_embed, dtype=torch.float64)
    found = compute_token_shares(model, random_pixels(family), directions, heads=[HeadId(layer, 0)]).on_image()
    handle.remove()
    assert (found[:, 0, :, :, 0] == 0).nonzero().tolist() == [[0, 1, 0], [1, 1, 0], [2, 1, 0]]


def test_shares_of_a_coarse_layer_lie_over_the_tokens_that_it_merged() -> None:
    shares = torch.tensor([7.0, 4.0, 8.0, 12.0, 16.0]).view(1, 1, 5, 1)
    placed = _place(shares, (2, 2), (4, 3))[0, 0, :, 0]
    assert placed[0] == 7 and placed.sum() == shares.sum()
    # Two rows a token; of three columns the first token lies over two.
    assert placed[1:].view(4, 3).tolist() == [[1, 1, 4], [1, 1, 4], [3, 3, 8], [3, 3, 8]]


@pytest.mark.parametrize(
    "family",
    ["Swin", "CLIP over Swin", "MaxViT, TensorFlow's", "MaxViT, LayerScale", "MaxViT, channels first", "CoAtNet"],
)
@pytest.mark.parametrize(("operation", "factor"), [("mean-ablate", None), ("zero-ablate", None), ("scale", 0.3)])
def test_folded_edits_are_those_of_hooks_on_the_live_model(family: str, operation: Any, factor: float | None) -> None:
    check_folded_edit(random_model(family), random_pixels(family), operation, factor)


def check_folded_edit(model: Model, pixels: Tensor, operation: Any, factor: float | None) -> None:
    last = model.tower.n_layers - 1
    scanned = scan_pixels(model, pixels)
    heads = (HeadId(0, 0), HeadId(last - 1, 1), HeadId(last, 0), HeadId(last, 1))
    edited = apply_recipe(bind_recipe(total_recipe(heads, operation, factor), scanned, model), model)
    means = {head: scanned.statistics.mean_values(f"L{head.layer}.heads")[head.head].float() for head in heads}
    expected = embed_with_hooks(
        model,
        pixels,
        heads,
        lambda head, values: {
            "mean-ablate": means[head].expand_as(values),
            "zero-ablate": torch.zeros_like(values),
            "scale": values * 0.3 + means[head] * 0.7,
        }[operation],
    )
    assert relative_error(expected, model.encode_image(pixels)) > 1e-3
    assert relative_error(edited.encode_image(pixels), expected) < 1e-5


def total_recipe(heads: tuple[HeadId, ...], operation: Any, factor: float | None) -> RecipeDocument:
    step = Step(operation=operation, heads=tuple(map(str, heads)), **({} if factor is None else {"factor": factor}))
    return RecipeDocument(schema_version=1, name="test", base=Base(model="test"), effect="total", steps=(step,))


def scan_pixels(model: Model, pixels: Tensor) -> Scan:
    layers = tuple(range(model.tower.n_layers))
    groups = model.tower.groups(layers, mlps=False)
    statistics = add_features(
        empty_statistics(groups, model.tower.d_model), model.tower.collect_features(pixels, groups)
    )
    return Scan((statistics,), model.name, None, model.weights_hash, "pixels", layers, False)


def embed_with_hooks(
    model: Model, pixels: Tensor, heads: tuple[HeadId, ...], edit: Callable[[HeadId, Tensor], Tensor]
) -> Tensor:
    """Change some heads' values on their way into `W_O`, while the module itself runs."""
    handles = []
    for head in heads:
        path = model.tower.tensor_names()[f"L{head.layer}.weight"].removesuffix(".weight")
        projection = model.module.get_submodule(path)
        axis = 1 if isinstance(projection, nn.Conv2d) else -1
        width = projection.weight.shape[1] // model.tower.heads_per_layer[head.layer]

        def change(_: Any, given: Any, head: HeadId = head, axis: int = axis, width: int = width) -> tuple[Tensor]:
            values = given[0].movedim(axis, -1).clone()
            own = slice(head.head * width, (head.head + 1) * width)
            values[..., own] = edit(head, values[..., own])
            return (values.movedim(-1, axis),)

        handles.append(projection.register_forward_pre_hook(change))
    found = own_embedding(model.module, pixels)
    for handle in handles:
        handle.remove()
    return found


def test_the_mean_of_values_is_over_tokens_and_not_over_padding() -> None:
    model = random_model("Swin, grid and windows that do not divide")
    pixels = torch.randn(3, 3, 56, 72)
    kept: list[Tensor] = []
    block = model.module.layers[0].blocks[1]
    attention = block._attn

    def reversed_windows(x: Tensor) -> Tensor:
        projection, block.attn.proj = block.attn.proj, nn.Identity()
        kept.append(attention(x))
        block.attn.proj = projection
        return attention(x)

    block._attn = reversed_windows
    own_embedding(model.module, pixels)
    del block._attn
    groups = model.tower.groups([1], mlps=False)
    values = model.tower.collect_features(pixels, groups).values["L1.heads"]
    assert relative_error(values.flatten(1), kept[0].mean((1, 2))) < 1e-5


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation gave."""

    size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel())
        return result


@pytest.mark.parametrize("family", ["Swin", "MaxViT, TensorFlow's"])
def test_no_tensor_is_larger_than_those_of_the_forward_pass(family: str) -> None:
    model = random_model(family)
    pixels = torch.randn(16, *PIXELS[1:])
    groups = model.tower.groups(range(model.tower.n_layers), mlps=True)
    with LargestTensor() as forward, torch.no_grad():
        model.module(pixels)
    with LargestTensor() as scan:
        model.tower.collect_features(pixels, groups)
    assert scan.size <= forward.size


@pytest.mark.parametrize("family", ["Swin", "MaxViT, TensorFlow's"])
def test_shares_of_tokens_need_no_tensor_larger_than_those_of_the_forward_pass(family: str) -> None:
    model = random_model(family)
    pixels, heads = torch.randn(16, *PIXELS[1:]), head_ids(model, range(model.tower.n_layers))
    directions = torch.randn(2, model.tower.d_embed, dtype=torch.float64)
    with LargestTensor() as forward, torch.no_grad():
        model.module(pixels)
    with LargestTensor() as looking:
        compute_token_shares(model, pixels, directions, heads=heads)
    assert looking.size <= forward.size


@pytest.mark.parametrize("family", ["CLIP over Swin", "CLIP over Swin, projection with bias"])
def test_a_refitted_readout_folds_into_the_projection(family: str) -> None:
    model = random_model(family)
    pixels = torch.randn(*PIXELS)
    final = model.tower.collect_features(pixels, []).final.double()
    readout, shift = torch.randn(model.tower.d_model, 20).double(), torch.randn(20).double()
    folded = model.tower.fold_readout(readout, shift)
    expected = final @ readout + shift
    assert relative_error(model.tower.embed_final(final, folded), expected) < 1e-5
    assert relative_error(model.with_tensors(folded).encode_image(pixels).double(), expected) < 1e-5


def test_a_refitted_readout_of_a_classifier_changes_its_logits() -> None:
    model = random_model("Swin")
    pixels = torch.randn(*PIXELS)
    final = model.encode_image(pixels).double()
    readout, shift = torch.randn(192, 192).double(), torch.randn(192).double()
    edited = model.with_tensors(model.tower.fold_readout(readout, shift))
    head = model.module.head.fc
    with torch.no_grad():
        expected = head((final @ readout + shift).float())
        assert relative_error(edited.module(pixels), expected) < 1e-5


@pytest.mark.parametrize("family", ["MaxViT, TensorFlow's", "Swin, heads wider than the stage's share"])
def test_distilled_is_refused_where_no_linear_map_reads_the_representation(family: str) -> None:
    model = random_model(family)
    with pytest.raises(RecipeError, match="no final linear map.*total"):
        model.tower.fold_readout(torch.eye(model.tower.d_model).double(), torch.zeros(model.tower.d_embed).double())
    document = total_recipe((HeadId(0, 0),), "mean-ablate", None).model_copy(update={"effect": "distilled"})
    with pytest.raises(RecipeError, match="no final linear map.*--effect total"):
        bind_recipe(document, scan_pixels(model, torch.randn(*PIXELS)), model)


def test_the_classifier_of_a_tf_model_reads_the_representation_through_its_tanh() -> None:
    model = random_model("MaxViT, TensorFlow's")
    pixels = torch.randn(*PIXELS)
    edited = replace(model, readout_edit=lambda tower, given: tower.embed(given))
    assert relative_error(edited.classify(pixels), model.classify(pixels)) < 1e-6


def test_a_name_that_both_libraries_have_is_timms_with_timms_tag() -> None:
    with pytest.raises(ModelError, match="'ms_in1' is neither a file nor a tag.*ms_in1k"):
        clipedit.load_model("swin_base_patch4_window7_224.ms_in1")


def test_models_without_an_exact_decomposition_are_refused_with_the_reason() -> None:
    tiny = {"img_size": 64, "num_classes": 2}
    cases = {
        "SwinTransformerV2.*normalises after attention": timm.create_model(
            "swinv2_tiny_window8_256", embed_dim=24, depths=(1, 1), num_heads=(1, 2), window_size=4, **tiny
        ),
        "a ConvNeXt is convolutional": timm.create_model("convnext_atto", depths=(1, 1, 1, 1), num_classes=2),
        "a ResNet is convolutional": timm.create_model("resnet10t", num_classes=2),
        "write side by side": maxvit("maxvit_tiny_pm_256", blocks=("PM", "PM", "PM")),
        "pools by MaxPool2d": maxvit("maxvit_tiny_rw_224", conv_pool_type="max"),
        "has no attention": maxvit("maxvit_tiny_rw_224", blocks=("C", "C", "C")),
        "pools by 'max'": swin(global_pool="max"),
    }
    for reason, module in cases.items():
        with pytest.raises(ModelError, match=reason):
            build_tower(module)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_base_patch4_window7_224", "maxvit_small_tf_224"])
def test_a_tower_of_real_size_sums_to_the_embedding_and_folds(name: str) -> None:
    torch.manual_seed(0)
    model = as_model(name, timm.create_model(name))
    pixels = torch.randn(2, 3, 224, 224)
    groups = model.tower.groups(range(model.tower.n_layers), mlps=True)
    features, total = model.tower.collect_features(pixels, groups), model.tower.constant()
    for group in groups:  # One at a time: all readouts together take gigabytes.
        readouts = model.tower.compute_readouts([group])[group.name]
        total = total + torch.einsum("cek,ick->ie", readouts, features.groups[group.name].double())
    assert relative_error(total, own_embedding(model.module, pixels).double()) < 1e-5
    check_folded_edit(model, pixels, "mean-ablate", None)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
