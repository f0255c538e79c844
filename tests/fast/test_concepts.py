"""Concept files: texts by instance, related concepts, plain lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipedit.editor.concepts.concepts import cut_evenly, library_folder, list_concepts, load_concept
from clipedit.editor.errors import ConceptError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return path


def test_texts_are_those_of_all_instances_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, "name: own\ninstances: {sea: [the sea, a beach], wood: [a forest]}\n")
    concept = load_concept(path)
    assert concept.texts == ("the sea", "a beach", "a forest")
    assert concept.parts() == {"sea": ("the sea", "a beach"), "wood": ("a forest",)}


def test_texts_keep_their_own_order_beside_instances(tmp_path: Path) -> None:
    path = write(tmp_path, "name: own\ntexts: [a, b, c]\ninstances: {odd: [a, c], even: [b]}\nrelated: [other]\n")
    concept = load_concept(path)
    assert concept.texts == ("a", "b", "c") and concept.related == ("other",)


def test_a_plain_list_is_cut_into_five_parts(tmp_path: Path) -> None:
    parts = load_concept(write(tmp_path, "name: own\ntexts: [a, b, c, d, e, f, g]\n")).parts()
    assert len(parts) == 5 and [text for part in parts.values() for text in part] == list("abcdefg")
    assert len(load_concept(write(tmp_path, "name: own\ntexts: [a, b, c]\n")).parts()) == 3
    assert [len(run) for run in cut_evenly(range(7), 3)] == [2, 2, 3]


@pytest.mark.parametrize(
    "instances", ["{sea: [the sea]}", "{sea: [the sea], wood: []}", "[the sea, a forest]", "{sea: the sea, wood: a}"]
)
def test_unusable_instances_are_refused(tmp_path: Path, instances: str) -> None:
    with pytest.raises(ConceptError, match="cannot use the concept"):
        load_concept(write(tmp_path, f"name: own\ninstances: {instances}\n"))


def test_texts_that_no_instance_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConceptError, match="not those of `texts`"):
        load_concept(write(tmp_path, "name: own\ntexts: [a, b, c]\ninstances: {odd: [a], even: [b]}\n"))


def test_every_shipped_concept_names_instances_and_known_relatives() -> None:
    names = list_concepts()
    demo = sorted((library_folder().parents[1] / "demo" / "model" / "concepts").glob("*.yaml"))
    for path in [*names.values(), *demo]:
        concept = load_concept(path)
        assert concept.instances is not None and set(concept.related) <= set(names)
        assert len(set(concept.texts)) == len(concept.texts)
