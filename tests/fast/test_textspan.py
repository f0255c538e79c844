"""TextSpan from covariances chooses what the paper's algorithm on the data matrix chooses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clipedit
from clipedit.editor.concepts.textspan import compute_text_span
from clipedit.editor.images.batches import load_batches
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.texts import load_texts


def text_span_on_data(contributions: Tensor, texts: Tensor, steps: int, rank: int) -> tuple[list[int], list[float]]:
    """Algorithm 1 of Gandelsman et al. on a matrix `[image, d_embed]`: the slow form, as a reference."""
    _, _, right = torch.linalg.svd(contributions, full_matrices=False)
    rows = right[:rank]
    texts = texts @ rows.T @ rows
    data = contributions - contributions.mean(0)
    total = data.square().sum()
    chosen, shares = [], []
    for _ in range(steps):
        best = int((data @ texts.T).std(0, correction=0).argmax())
        unit = F.normalize(texts[best], dim=0)
        chosen.append(best)
        shares.append(float((data @ unit).square().sum() / total))
        data = data - (data @ unit)[:, None] * unit
        texts = texts - (texts @ unit)[:, None] * unit
    return chosen, shares


def test_covariances_give_the_lists_of_the_data_matrix_on_a_scan_of_the_demo(
    demo_model: clipedit.Model, small_demo_scan: clipedit.Scan
) -> None:
    tower = demo_model.tower
    groups = [group for group in tower.groups(range(4), mlps=False) if group.ids[0].kind == "head"]
    features: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    for batch in load_batches(demo_calibration_source(256), demo_model.preprocess, batch_size=32):
        found = tower.collect_features(batch.pixels, groups)
        for name, u in found.groups.items():
            features[name].append(u.double() / found.embedding.double().norm(dim=1)[:, None, None])
    pool = load_texts(model_folder=demo_model.folder)
    directions = F.normalize(demo_model.encode_text(list(pool)).double(), dim=-1)
    labels = clipedit.text_span(small_demo_scan, demo_model, texts=pool, texts_per_head=8)
    readouts = tower.compute_readouts(groups)
    for group in groups:
        contributions = torch.einsum("ihk,hek->hie", torch.cat(features[group.name]), readouts[group.name])
        for identity, matrix in zip(group.ids, contributions, strict=True):
            chosen, shares = text_span_on_data(matrix, directions, steps=8, rank=tower.d_head)
            assert [item.text for item in labels[str(identity)]] == [pool[index] for index in chosen], str(identity)
            found = torch.tensor([item.variance_share for item in labels[str(identity)]])
            assert torch.allclose(found, torch.tensor(shares), atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_covariances_give_the_lists_of_the_data_matrix_on_random_data(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    readout = torch.randn(1, 40, 10, generator=generator, dtype=torch.float64)
    u = torch.randn(300, 10, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 3, 10)
    texts = F.normalize(torch.randn(120, 40, generator=generator, dtype=torch.float64), dim=1)
    found, shares = compute_text_span(readout, torch.cov(u.T, correction=0)[None], texts, steps=10)
    expected, expected_shares = text_span_on_data(u @ readout[0].T, texts, steps=10, rank=10)
    assert found[0].tolist() == expected
    assert torch.allclose(shares[0], torch.tensor(expected_shares, dtype=torch.float64), atol=1e-9)


def test_all_directions_together_explain_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    readout = torch.randn(3, 20, 6, generator=generator, dtype=torch.float64)
    covariance = torch.eye(6, dtype=torch.float64).repeat(3, 1, 1)
    texts = torch.randn(50, 20, generator=generator, dtype=torch.float64)
    _, shares = compute_text_span(readout, covariance, texts, steps=6)
    assert torch.allclose(shares.sum(1), torch.ones(3, dtype=torch.float64))
    assert (shares >= 0).all()


def test_a_head_that_never_varies_has_no_labels() -> None:
    readout, texts = torch.randn(1, 20, 6).double(), torch.randn(50, 20).double()
    _, shares = compute_text_span(readout, torch.zeros(1, 6, 6).double(), texts, steps=3)
    assert (shares == 0).all()


def test_too_few_texts_are_refused(demo_model: clipedit.Model, small_demo_scan: clipedit.Scan) -> None:
    with pytest.raises(clipedit.ConceptError, match="3 texts: 20 a head"):
        clipedit.text_span(small_demo_scan, demo_model, texts=["a", "b", "c"])
