"""Coverage-guided fuzzing with atheris (extra `[fuzz]`): bytes of one reader, changed towards unreached code.

    python benchmarks/fuzz_atheris.py recipe -runs=20000 -seed=1

Everything after the reader is libFuzzer's. Valid files are the first corpus. Any exception but a `ClipeditError` ends
the run, as does an input of more than five seconds (-timeout) or two gigabytes more (-rss_limit_mb).
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["clipedit.editor", "yaml"], enable_loader_override=False):
    from clipedit import ClipeditError
    from clipedit.editor.concepts.concepts import load_concept
    from clipedit.editor.edits.recipe import load_recipe
    from clipedit.editor.files.tensors import read_header
    from clipedit.editor.files.vectors import open_vectors
    from clipedit.editor.images.decode import open_image
    from clipedit.editor.images.listing import list_images
    from clipedit.editor.scan.scan import load_scan

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "recipe": ("x.yaml", load_recipe),
    "concept": ("x.yaml", load_concept),
    "safetensors": ("x.safetensors", read_header),
    "scan": ("scan.safetensors", load_scan),
    "table": ("t.csv", lambda path: list_images(path).fingerprint()),
    "images": ("x.png", open_image),
    "npy": ("x.npy", lambda path: list(open_vectors(path).chunks())),
}
SEEDS = 40


def write_corpus(name: str, folder: Path) -> None:
    """Inputs of the mutation fuzzer to start from; the first ones are nearly whole."""
    from fuzz_targets import build_targets

    with tempfile.TemporaryDirectory() as made:
        target = build_targets(Path(made))[name]
        for index in range(SEEDS):
            place = Path(made) / f"seed-{index}"
            place.mkdir()
            target.make(random.Random(index), place)
            for path in place.iterdir():
                if path.is_file():
                    (folder / f"{index}-{path.name}").write_bytes(path.read_bytes())


def main() -> None:
    name = sys.argv[1]
    suffix, read = READERS[name]
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    corpus = folder / "corpus"
    corpus.mkdir()
    write_corpus(name, corpus)
    path = folder / suffix

    def test_one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read(path)
        except ClipeditError:
            return

    options = ["-timeout=5", "-rss_limit_mb=4096", "-max_len=20000", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, *sys.argv[2:], str(corpus)], test_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
