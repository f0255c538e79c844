"""Several concepts removed at once: one refit, in whatever order, and what each removal does to the other concept."""

from __future__ import annotations

import pytest
import torch

import clipedit
from clipedit.editor.concepts.concepts import load_concept
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.document import RecipeDocument, Step
from clipedit.editor.edits.operations import project_jointly, project_output
from clipedit.editor.measure.readable import Reader, read_interactions
from clipedit.editor.select.selectors import join_documents, select_recipe, select_several
from clipedit.editor.select.whose_heads import HeldConcepts

pytestmark = pytest.mark.usefixtures("verified_here")

NAMES = ("location", "color")


@pytest.fixture(scope="module")
def known(demo_scan: clipedit.Scan, demo_model: clipedit.Model) -> HeldConcepts:
    return HeldConcepts(demo_scan, demo_model)


@pytest.fixture(scope="module")
def documents(known: HeldConcepts) -> dict[str, RecipeDocument]:
    # Given amounts: nothing has to be weighed.
    return {name: select_recipe(known.scan, known.model, concept=name, heads=4, output_strength=0.6) for name in NAMES}


def basis(columns: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(8, columns, dtype=torch.float64, generator=generator))[0]


@pytest.mark.parametrize("strengths", [(0.3, 0.9), (1.0, 0.5), (0.5, 1.0), (1.0, 1.0), (0.0, 0.7)])
def test_projections_together_have_no_order_and_each_is_whole(strengths: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = basis(2, generator), basis(3, generator)
    found = project_jointly([first, second], strengths)
    assert torch.allclose(found, project_jointly([second, first], strengths[::-1]), atol=1e-12)
    assert torch.allclose(found, found.T)
    # No direction is left more than either projection alone leaves of it.
    for one, strength in zip((first, second), strengths, strict=True):
        assert float(torch.linalg.eigvalsh(project_output(one, strength) - found).min()) > -1e-9
        if strength == 1:
            assert float((found @ one).norm()) < 1e-9


def test_one_projection_and_orthogonal_ones_are_what_they_were() -> None:
    generator = torch.Generator().manual_seed(1)
    both = basis(5, generator)
    first, second = both[:, :2], both[:, 2:]
    assert torch.equal(project_jointly([first], [0.53]), project_output(first, 0.53))
    product = project_output(first, 0.4) @ project_output(second, 1.0)
    assert torch.allclose(project_jointly([first, second], [0.4, 1.0]), product)
    # A direction that both project out whole goes once.
    same = project_jointly([first, first[:, :1]], [1.0, 1.0])
    assert torch.allclose(same, project_output(first, 1.0))


def test_steps_in_either_order_give_the_same_distilled_weights(
    known: HeldConcepts, documents: dict[str, RecipeDocument]
) -> None:
    steps = [step for document in documents.values() for step in document.steps]
    base = documents["location"]
    found = [
        bind_recipe(base.model_copy(update={"steps": tuple(order)}), known.scan, known.model).tensors
        for order in (steps, steps[::-1])
    ]
    assert found[0] is not None and found[1] is not None and found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], atol=1e-6), name


def test_a_joint_recipe_names_every_head_once_whatever_the_order(
    known: HeldConcepts, documents: dict[str, RecipeDocument]
) -> None:
    amounts = {"heads": 4, "output_strength": 0.6, "known": known}
    both = [select_several(known.scan, known.model, concepts=order, **amounts) for order in (NAMES, NAMES[::-1])]
    assert both[0] == both[1] and both[0].name == "remove-color-and-location"
    assert set(both[0].heads) == {head for one in documents.values() for head in one.heads}
    assert [step.target for step in both[0].steps] == ["heads", "output", "output"]
    alone = select_several(known.scan, known.model, concepts=["location"], heads=4, output_strength=0.6)
    assert alone == documents["location"]


def test_operations_with_directions_keep_a_step_for_each_concept(documents: dict[str, RecipeDocument]) -> None:
    steps = [Step(operation="project-out", heads=("L3H1",), concept=name) for name in NAMES]
    made = [one.model_copy(update={"steps": (step,)}) for one, step in zip(documents.values(), steps, strict=True)]
    assert join_documents(made).steps == tuple(steps)


def test_what_is_removed_too_does_not_have_to_stay(known: HeldConcepts) -> None:
    found = select_several(known.scan, known.model, concepts=NAMES, known=known)
    assert found.measured is not None
    # Of color nothing is weighed: no number of heads removes much more of it than of anything else.
    assert found.measured["choices"].keys() <= set(NAMES) and found.measured["choices"]["location"]["of"] != "color"


def test_a_concept_named_twice_is_refused(known: HeldConcepts) -> None:
    for concepts in (["location", "location"], []):
        with pytest.raises(clipedit.ConceptError, match="once"):
            select_several(known.scan, known.model, concepts=concepts)


def test_make_recipe_takes_several_concepts(known: HeldConcepts) -> None:
    options = {"heads": 4, "output_strength": 0.6}
    one, other = (
        clipedit.make_recipe(known.scan, known.model, concept=order, **options) for order in (NAMES, NAMES[::-1])
    )
    assert one.document == other.document and one.tensors is not None and other.tensors is not None
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def test_each_removal_is_read_against_each_concept(known: HeldConcepts, documents: dict[str, RecipeDocument]) -> None:
    made = {(name,): document for name, document in documents.items()}
    made[tuple(sorted(NAMES))] = join_documents([documents[name] for name in sorted(NAMES)])
    readers = {
        removed: Reader(known.probe, bind_recipe(document, known.scan, known.model))
        for removed, document in made.items()
    }
    concepts = [load_concept(name, known.model.folder) for name in NAMES]
    rows = {(one.removed, one.concept): one for one in read_interactions(readers, concepts, known.scan)}
    assert len(rows) == 6
    share = {key: row.after / row.before for key, row in rows.items()}
    for name in NAMES:
        others = [other for other in NAMES if other != name]
        # A removal takes more of its own concept than of the other one; both together take both.
        assert all(share[(name,), name] < 0.6 * share[(name,), other] for other in others)
        assert share[tuple(sorted(NAMES)), name] < 0.6
    assert rows[("color",), "color"].report()["removed"] == ["color"]


def test_repair_removes_several_concepts_and_says_what_each_does_to_the_other(known: HeldConcepts) -> None:
    options = clipedit.EditOptions(heads=4, output_strength=0.6)
    choice = clipedit.HeadChoice(force=True)
    shared = {"scan": known.scan, "options": options, "choice": choice}
    done = clipedit.repair(known.model, concept=NAMES, **shared)
    assert done.recipe.document.name == "remove-color-and-location"
    # The demo's images judge location only: of both together they say nothing.
    assert done.verdict.word == "NOT MEASURED" and "color" in done.verdict.because
    removed = {tuple(row["removed"]) for row in done.report()["interactions"]}
    assert removed == {("color",), ("location",), ("color", "location")} and len(done.interactions) == 6
    edited = [row.concept for row in done.readable if row.edited]
    assert sorted(edited) == sorted(NAMES) and len(done.readable) == len({row.concept for row in done.readable})
    again = clipedit.repair(known.model, concept=NAMES[::-1], measure=False, **shared)
    assert all(torch.equal(tensor, again.recipe.tensors[name]) for name, tensor in done.recipe.tensors.items())
    with pytest.raises(clipedit.ConceptError, match="has done so"):
        clipedit.repair(done.edited, concept=["shape", "color"], scan=known.scan, measure=False)


def test_one_concept_says_nothing_of_others(known: HeldConcepts) -> None:
    options = clipedit.EditOptions(heads=4, output_strength=0.6)
    choice = clipedit.HeadChoice(force=True)
    shared = {"scan": known.scan, "options": options, "choice": choice, "measure": False}
    one, listed = (clipedit.repair(known.model, concept=given, **shared) for given in ("color", ["color"]))
    assert one.recipe.document == listed.recipe.document and "interactions" not in one.report()
    assert all(torch.equal(tensor, listed.recipe.tensors[name]) for name, tensor in one.recipe.tensors.items())


@pytest.mark.slow
def test_remove_heads_takes_a_concept_after_another(run, known: HeldConcepts, tmp_path) -> None:
    scan = tmp_path / "scan.safetensors"
    known.scan.save(scan)
    command = ["remove-heads", "--concept", "location", "--concept", "color", "--scan", scan, "--no-report"]
    found = run(*command, "--heads", 4, "--output-strength", 0.6, "-o", tmp_path / "out")
    assert found.code == 0 and "color, location" in found.out, found.err
    assert clipedit.load_recipe(tmp_path / "out").document.name == "remove-color-and-location"
    assert run(*command, "--select", "frontier", "-o", tmp_path / "no").code == 1
