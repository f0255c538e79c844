"""transformers.js under Node, asked from Python: one request and one answer a line."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

SCRIPT = "transformers_js.mjs"
PACKAGE = "@huggingface/transformers"


class NodeModel:
    """A folder of target `transformers-js`, loaded by transformers.js in a process that ends when this object does.

    Raises:
        ImportError: If there is no Node, or it does not find transformers.js.
    """

    def __init__(self, folder: Path, dtype: str):
        node = shutil.which("node")
        if node is None:
            raise ImportError("there is no `node`")
        script = Path(__file__).with_name(SCRIPT)
        self._process = subprocess.Popen(
            [node, script, folder.resolve(), dtype],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        weakref.finalize(self, _end, self._process)
        self.version = self._read()["version"]

    def embed_texts(self, texts: list[str]) -> Tensor:
        """Embeddings of texts, by its own tokenizer."""
        return self._ask({"texts": texts})

    def embed_images(self, images: list[Image.Image]) -> Tensor:
        """Embeddings of images, by its own preprocessing."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [f"{folder}/{index}.png" for index in range(len(images))]
            for image, path in zip(images, paths, strict=True):
                image.save(path)
            return self._ask({"images": paths})

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Embeddings of preprocessed pixels."""
        data = base64.b64encode(pixels.contiguous().numpy().tobytes()).decode()
        return self._ask({"pixels": data, "shape": list(pixels.shape)})

    def _ask(self, request: Any) -> Tensor:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return torch.tensor(self._read())

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        _, said = self._process.communicate()
        reason = next((line.strip() for line in said.splitlines() if "Error" in line), "it ended without an answer")
        kind = ImportError if PACKAGE in reason and "Cannot find" in reason else RuntimeError
        raise kind(f"transformers.js: {reason}")


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()
