"""Inputs of `fuzz.py` that need no model: text files, labels, images and vectors, with their readers."""

from __future__ import annotations

import csv
import io
import random
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fuzz_mutate import change_bytes, change_lines, change_value
from PIL import Image, PngImagePlugin

import clipedit
from clipedit.demo import world
from clipedit.editor.concepts.concepts import library_folder
from clipedit.editor.edits.document import list_recipes
from clipedit.editor.files.vectors import open_vectors
from clipedit.editor.images.labelled import load_classes, load_labelled_images, load_lines
from clipedit.editor.images.layouts import load_dataset
from clipedit.editor.images.listing import list_images
from clipedit.editor.images.texts import load_texts

Generator = random.Random


# Text files.


def recipe_documents() -> list[Any]:
    found = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in list_recipes().values()]
    step = {"operation": "project-out", "heads": ["L3H5"], "texts": ["a", "b"], "directions": 2, "strength": 0.5}
    return [
        *found,
        {
            "schema_version": 1,
            "name": "n",
            "base": {"model": "demo"},
            "effect": "total",
            "measured": {"before": {"accuracy": 0.5}},
            "steps": [
                step,
                {"operation": "mean-ablate", "target": "mlps", "layers": [3]},
                {"operation": "leace", "target": "output"},
            ],
        },
    ]


def concept_documents() -> list[Any]:
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(library_folder().glob("*.yaml"))[:4]]


def make_yaml(given: list[Any], generator: Generator, folder: Path) -> Path:
    value = generator.choice(given)
    kind = generator.randrange(5)
    if kind < 3:
        value = change_value(generator, value)
    with suppress(ValueError, yaml.YAMLError):
        text = yaml.safe_dump(value, sort_keys=False)
    if kind == 3:
        text = change_lines(generator, text)
    data = text.encode("utf-8", "replace")
    path = folder / "x.yaml"
    path.write_bytes(change_bytes(generator, data) if kind == 4 or generator.random() < 0.2 else data)
    return path


def make_lines(generator: Generator, folder: Path) -> Path:
    path = folder / "x.txt"
    text = "0: landbird\n1: waterbird\n\na photo of a {}\n# a\n" * generator.choice((1, 1, 40))
    path.write_bytes(change_bytes(generator, change_lines(generator, text).encode("utf-8", "replace")))
    return path


def read_lines(path: Path) -> None:
    read: list[Callable[[Path], object]] = [load_lines, load_classes, load_texts]
    refused = [error for function in read if (error := _refusal(function, path))]
    if refused:
        raise refused[0]


def _refusal(function: Callable[[Path], object], path: Path) -> clipedit.ClipeditError | None:
    try:
        function(path)
    except clipedit.ClipeditError as error:
        return error
    return None


# Tables of labels.


def _table(columns: Mapping[str, list[str]], rows: int = 6) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(columns)
    writer.writerows([values[i % len(values)] for values in columns.values()] for i in range(rows))
    return stream.getvalue()


def _change_table(generator: Generator, text: str) -> bytes:
    found = change_lines(generator, text)
    if generator.random() < 0.05:
        found += f'\n"{"f" * 200_000}",1\n'
    data = found.encode("utf-8", "replace")
    return change_bytes(generator, data) if generator.random() < 0.4 else data


def make_table(generator: Generator, folder: Path) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    birds = {"img_id": ["1"], "img_filename": ["a.png", "b.png"], "y": ["0", "1"], "split": ["2"], "place": ["0", "1"]}
    plain = {"path": ["a.png", "../a.png"], "label": ["x", "y"], "colour": ["red", "ü"]}
    text = _table(generator.choice((birds, plain)))
    if generator.random() < 0.2:
        text = text.replace(",", "\t")
    path = folder / generator.choice(("metadata.csv", "metadata.csv", "t.csv", "t.tsv"))
    path.write_bytes(_change_table(generator, text))
    return path


def read_table(path: Path) -> None:
    read: list[Callable[[Path], object]] = [
        lambda path: list_images(path).fingerprint(),
        lambda path: list_images(path).open(0),
        load_labelled_images,
        load_dataset,
        lambda path: load_labelled_images(path, group_by=["colour"]),
        lambda path: load_dataset(path.parent, layout="waterbirds"),
    ]
    refused = [error for function in read if (error := _refusal(function, path))]
    if len(refused) == len(read):
        raise refused[0]


def make_celeba(generator: Generator, folder: Path) -> Path:
    if generator.random() < 0.5:
        attributes = "2\nBlond_Hair Male\n" + "".join(f"{i}.jpg {1 - 2 * (i % 2):2d} -1\n" for i in range(4))
        partition = "".join(f"{i}.jpg 2\n" for i in range(4))
        end = "txt"
    else:
        attributes = _table({"image_id": [f"{i}.jpg" for i in range(6)], "Blond_Hair": ["1", "-1"], "Male": ["1"]})
        partition, end = _table({"image_id": [f"{i}.jpg" for i in range(6)], "partition": ["2", "0"]}), "csv"
    both = [attributes.encode(), partition.encode()]
    which = generator.randrange(2)
    both[which] = _change_table(generator, both[which].decode())
    for name, data in zip(("list_attr_celeba", "list_eval_partition"), both, strict=True):
        (folder / f"{name}.{end}").write_bytes(data)
    return folder


def make_fairface(generator: Generator, folder: Path) -> Path:
    text = _table(
        {"file": ["val/1.jpg", "val/2.jpg"], "age": ["20-29"], "gender": ["Male", "Female"], "race": ["a", "b"]}
    )
    (folder / "fairface_label_val.csv").write_bytes(_change_table(generator, text))
    return folder


def read_dataset(path: Path) -> None:
    load_dataset(path)


# Images.


def make_image(generator: Generator, folder: Path) -> Path:
    kind = generator.choice(("png", "jpg", "progressive.jpg", "gif", "tif", "webp", "bmp", "ppm", "16.png", "exif.jpg"))
    path = folder / kind
    path.write_bytes(change_bytes(generator, _valid_image(kind), most=8))
    return path


def _valid_image(kind: str) -> bytes:
    if kind not in _IMAGES:
        image = Image.fromarray(world.render(world.draw_balanced_scenes(1, seed=len(kind))[0]))
        stream, options = io.BytesIO(), {}
        if kind == "png":
            notes = PngImagePlugin.PngInfo()
            notes.add_text("note", "n" * 500, zip=True)
            options = {"pnginfo": notes, "icc_profile": b"p" * 300}
        if kind == "16.png":
            image = Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64))
        if kind == "gif":
            options = {"save_all": True, "append_images": [image.rotate(90)], "comment": b"c" * 400}
        if kind == "tif":
            options = {"compression": "tiff_lzw"}
        if kind == "exif.jpg":
            exif = Image.Exif()
            exif[0x010E], exif[0x0112] = "d" * 300, 6
            options = {"exif": exif}
        suffix = kind.rpartition(".")[2]
        names = {"jpg": "JPEG", "tif": "TIFF", "ppm": "PPM"}
        image.save(
            stream,
            names.get(suffix, suffix.upper()),
            **options,
            **({"progressive": True} if "progressive" in kind else {}),
        )
        _IMAGES[kind] = stream.getvalue()
    return _IMAGES[kind]


_IMAGES: dict[str, bytes] = {}


# Vectors.


def make_npy(generator: Generator, folder: Path) -> Path:
    stream = io.BytesIO()
    dtype = generator.choice(("<f4", ">f4", "<f8", "<f2", "<i4", "|S3"))
    np.save(stream, np.ones((5, 3)).astype(dtype))
    data = stream.getvalue()
    if generator.random() < 0.6:
        shape = ", ".join(_number(generator) for _ in range(2))
        descr = generator.choice(("'|O'", "'<f4'", "[('a', '<f4')]", "('<f4', (9,))", "'<f99'", "'x'"))
        header = generator.choice(
            (
                f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}",
                f"{{'descr': {descr}, 'fortran_order': False, 'shape': (5, 3), }}",
                "(" * generator.choice((10, 3000)),
                "-" * 5000 + "1",
                "[" * 99 + "]" * 99,
                "__import__('os').system('id')",
            )
        ).encode()
        data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + data[128:]
    path = folder / "x.npy"
    path.write_bytes(change_bytes(generator, data, most=3) if generator.random() < 0.6 else data)
    return path


def _number(generator: Generator) -> str:
    return generator.choice(("5", "3", "0", "-1", "True", "1e3", "9" * 30, "2**40", "None", "'a'"))


def read_vectors(path: Path) -> None:
    for _ in open_vectors(path).chunks():
        pass
