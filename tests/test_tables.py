"""Tables and lists of texts as people have them: marks, line ends, separators and quotes change nothing."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import clipedit
from clipedit.editor.concepts.concepts import load_concept
from clipedit.editor.edits.document import load_document
from clipedit.editor.files.bounded import load_json
from clipedit.editor.files.tables import read_table, unquote
from clipedit.editor.images.labelled import load_attributes, load_classes, load_labelled_images, load_lines
from clipedit.editor.images.layouts import load_dataset
from clipedit.editor.images.listing import PATH_COLUMNS, find_path_column, list_images
from clipedit.editor.images.source import LabelledImages
from clipedit.editor.images.texts import load_texts

TABLE = "filename,label,note\na.png,cat,plain\nb.png,dog,plain\n"

WRITINGS: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: text.encode(),
    "with a mark": lambda text: text.encode("utf-8-sig"),
    "ends of Windows": lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
    "ends of old Macs": lambda text: text.replace("\n", "\r").encode(),
    "UTF-16": lambda text: codecs.BOM_UTF16_LE + text.replace("\n", "\r\n").encode("utf-16-le"),
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("writing", WRITINGS)
def test_every_text_input_is_the_same_however_it_was_saved(writing: str, pictures: Path) -> None:
    def write(name: str, text: str) -> Path:
        (pictures / name).write_bytes(WRITINGS[writing](text))
        return pictures / name

    assert load_labelled_images(write("t.csv", TABLE)).classes == ("cat", "dog")
    assert load_classes(write("c.txt", "0: a cat\n\n1: a dog\nnan\n")) == {"0": "a cat", "1": "a dog", "nan": "nan"}
    assert load_lines(write("p.txt", "a photo of a {}.\nthe {}\n")) == ["a photo of a {}.", "the {}"]
    assert load_texts(write("x.txt", "nan\nnull\nan owl\n")) == ("nan", "null", "an owl")
    concept = load_concept(write("own.yaml", "name: own\ntexts:\n  - nan\n  - a forest; a lake\n"))
    assert concept.texts == ("nan", "a forest; a lake")
    steps = "schema_version: 1\nname: r\nbase: {model: demo}\nsteps:\n  - {heads: [L3H1], operation: mean-ablate}\n"
    assert load_document(write("r.yaml", steps))[0].name == "r"
    assert load_json(write("j.json", '{"a": "b"}\n')) == {"a": "b"}


@pytest.mark.parametrize(
    "text",
    [
        TABLE.replace(",", ";"),
        TABLE.replace(",", "\t"),
        TABLE.replace(",", "|"),
        TABLE.replace(",", ", "),
        "sep=;\n" + TABLE.replace(",", ";"),
        '"filename";"label";"note"\n"a.png";"cat";"one, two; three"\n"b.png";"dog";"say ""hi"""\n',
        'filename,label,note\na.png,cat,"two\nlines"\nb.png,dog,x\n\n,,\n',
        ",filename,label,note\n0,a.png,cat,x\n1,b.png,dog,y\n",
        "Filename,label,note,\na.png,cat,x,\nb.png,dog,y\n",
    ],
)
def test_separators_and_quotes_are_seen(text: str, pictures: Path) -> None:
    (pictures / "t.csv").write_text(text)
    found = load_labelled_images(pictures / "t.csv")
    assert (found.classes, found.labels, found.source.names) == (("cat", "dog"), (0, 1), ("a.png", "b.png"))
    assert found.source.open(1).size == (8, 8) and list(found.source.attributes[0])[1:] == [
        "label",
        "note",
    ]


def test_quoted_values_are_what_is_inside(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('path;words\n"a;b.png";"one ""two"""\n"c\nd.png";e\n')
    rows = [{"path": "a;b.png", "words": 'one "two"'}, {"path": "c\nd.png", "words": "e"}]
    assert read_table(tmp_path / "t.csv") == rows
    assert list_images(tmp_path / "t.csv").names == ("a;b.png", "c\nd.png")


@pytest.mark.parametrize(
    "name", [*PATH_COLUMNS, "Filename", "File_Name", "IMAGE_ID", "File Name", "image-path", "ImagePath"]
)
def test_columns_of_paths_are_known_by_name(name: str, pictures: Path) -> None:
    (pictures / "t.csv").write_text(f"label,{name}\ncat,a.png\ndog,b.png\n")
    assert list_images(pictures / "t.csv").names == ("a.png", "b.png")
    assert load_attributes(pictures / "t.csv").attributes[1] == {"label": "dog", name: "b.png"}


def test_of_two_columns_the_one_that_can_only_be_a_path_is_taken() -> None:
    assert find_path_column(["image_id", "image_path"]) == "image_path"
    assert find_path_column(["image", "file_name"]) == "file_name"


@pytest.mark.parametrize("cells", [("sub\\a.png", "sub\\b.png"), ("sub/a", "sub/b"), ("sub/a.png ", "sub/b.png")])
def test_paths_of_windows_with_blanks_and_without_suffixes_are_found(cells: tuple[str, str], pictures: Path) -> None:
    (pictures / "sub").mkdir()
    for name in ("a.png", "b.png"):
        (pictures / name).rename(pictures / "sub" / name)
    (pictures / "t.csv").write_text(f"image_id,label\n{cells[0]},cat\n{cells[1]},dog\n")
    found = load_dataset(pictures / "t.csv")
    assert isinstance(found, LabelledImages) and found.source.names == cells
    assert found.source.open(1).size == (8, 8)


def test_a_file_that_is_called_so_goes_before_other_spellings(pictures: Path) -> None:
    Image.new("RGB", (4, 4)).save(pictures / "a", "PNG")
    (pictures / "t.csv").write_text("path\na\nb\n")
    assert [list_images(pictures / "t.csv").open(index).size for index in (0, 1)] == [(4, 4), (8, 8)]


def test_usual_columns_are_known_in_any_case_of_letters(pictures: Path) -> None:
    (pictures / "t.csv").write_text(
        "Path,Label,Split,Place\na.png,cat,test,sea\nb.png,dog,test,land\na.png,dog,train,sea\n"
    )
    found = load_dataset(pictures / "t.csv")
    assert isinstance(found, LabelledImages) and found.split == "test"
    assert found.groups == ("cat / Place sea", "dog / Place land")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("path,label\na.png,cat\nb.png,caf\xe9\n".encode("cp1252"), r"line 3 is not utf-8: it holds b'\\xe9'"),
        ("path,label\na.png,cat\n".encode("utf-16-le"), "line 1 holds a NUL: it is no text, or UTF-16 without its"),
        (b"path,label\n", "it has no rows below a header"),
        (b"", "it has no rows below a header"),
    ],
)
def test_a_table_in_another_encoding_or_without_rows_is_told(content: bytes, told: str, pictures: Path) -> None:
    (pictures / "t.csv").write_bytes(content)
    with pytest.raises(clipedit.ImageError, match=told):
        load_dataset(pictures / "t.csv")


def test_a_list_in_another_encoding_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes("a\ncaf\xe9\n".encode("cp1252"))
    with pytest.raises(clipedit.ImageError, match="line 2 is not utf-8"):
        load_classes(tmp_path / "c.txt")


def test_a_class_with_two_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("0: a cat\n1: a dog\n0: a fox\n")
    with pytest.raises(clipedit.ImageError, match="0 is there twice, as 'a cat' and 'a fox'. Keep one."):
        load_classes(tmp_path / "c.txt")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("cat/a.png", "dog/b.png", "c.png"), "c.png lies in no folder of a class, give one folder per .* label.$"),
        (("data/cat/a.png", "data/dog/b.png"), "all its images lie in data, .* and label. Is .*/data meant?"),
        (("a.png", "b.png", "labels.csv"), "a.png lies in no folder of a class, .* and label. Is .*/labels.csv meant?"),
    ],
)
def test_folders_that_are_no_classes_say_which_image_is_not_in_one(
    names: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name, "PNG")
    with pytest.raises(clipedit.ImageError, match=told):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["a.png,cat,x", "b.png"], "row 2 below the header has 1 values, the header 3"),
        (["a.png,cat,x", "b.png,dog"], "row 2 below the header has 2 values, the header 3"),
        (["a.png,cat,x,more", "b.png,dog,x"], "row 1 below the header has 4 values, the header 3"),
        (["a.png,cat,x", ",dog,x"], "row 2 below the header has no filename"),
        (["a.png,cat,x", "b.png,,x"], r"b.png \(row 2 below the header\) has no label. Fill it in"),
        (["a.png,cat,x", "b.png, ,x"], r"b.png \(row 2 below the header\) has no label. Fill it in"),
        (["a.png,cat,x", "b.png,nan,x"], r"b.png \(row 2 below the header\) has no label but 'nan'. Fill it in"),
        (["a.png,cat,x", "b.png,NaN,x"], r"b.png \(row 2 below the header\) has no label but 'NaN'. Fill it in"),
        (["a.png,cat,", "b.png,dog,x"], r"a.png \(row 1 below the header\) has no note. Fill it in"),
    ],
)
def test_a_row_that_lacks_something_is_named(rows: list[str], told: str, pictures: Path) -> None:
    (pictures / "t.csv").write_text("\n".join(["filename,label,note", *rows]))
    with pytest.raises(clipedit.ImageError, match=told):
        load_labelled_images(pictures / "t.csv", group_by=["note"])


def test_nan_is_a_class_where_the_classes_say_so(pictures: Path) -> None:
    (pictures / "t.csv").write_text("filename,label\na.png,nan\nb.png,naan\n")
    found = load_labelled_images(pictures / "t.csv", classes={"nan": "grandmother", "naan": "bread"})
    assert found.classes == ("grandmother", "bread") and found.labels == (0, 1)


def test_the_tables_of_published_sets_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "fairface_label_val.csv").write_bytes(
        "file;age;gender;race\r\nval/1.jpg;20-29;Male;Black\r\n".encode("utf-8-sig")
    )
    assert load_dataset(tmp_path).attributes["race"] == ("Black",)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"a cat"', "a cat"),
        ("'a cat'", "a cat"),
        ('"say ""hi"""', 'say "hi"'),
        ('"a" and "b"', '"a" and "b"'),
        ("rock 'n' roll", "rock 'n' roll"),
        ("'", "'"),
        ('""', ""),
    ],
)
def test_quotes_around_a_whole_text_are_no_part_of_it(text: str, expected: str) -> None:
    assert unquote(f"  {text} ") == expected


def test_lines_with_quotes_or_semicolons_are_classes(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text('"0": "a cat"\n\'1;2\' : a dog\n3;an owl\n4\tan ox\ntench, Tinca tinca\n')
    assert load_classes(tmp_path / "c.txt") == {
        "0": "a cat",
        "1;2": "a dog",
        "3": "an owl",
        "4": "an ox",
        "tench, Tinca tinca": "tench, Tinca tinca",
    }
    (tmp_path / "c.txt").write_text(": words\n")
    with pytest.raises(clipedit.ImageError, match="a line has no class before its colon"):
        load_classes(tmp_path / "c.txt")


def test_marks_inside_of_a_text_do_not_cut_it(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("one\u2028text\nanother\x0btext\n", encoding="utf-8")
    assert load_texts(tmp_path / "x.txt") == ("one\u2028text", "another\x0btext")


def test_words_that_yaml_takes_for_something_else_are_named(tmp_path: Path) -> None:
    for word in ("no", "null", "1990"):
        (tmp_path / "own.yaml").write_text(f"name: own\ntexts:\n  - a forest\n  - {word}\n")
        with pytest.raises(clipedit.ConceptError, match=r"texts\.1: .*valid string\. Put that word in quotes"):
            load_concept(tmp_path / "own.yaml")
