"""Target `transformers-js`: `onnx/` with both graphs beside the configuration files of target `hf`."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...editor.errors import VerificationError
from ...editor.models.model import Model
from ..consumers.consumer import Consumer
from ..consumers.onnx_runtime import load_graphs
from ..consumers.preprocessor_config import NAME as PREPROCESSOR_NAME
from ..consumers.preprocessor_config import build_processor, tell_preprocessor
from ..consumers.target import Target, TargetRow
from ..graphs.onnx_graphs import write_graphs
from ..graphs.profile import GraphSpec, Profile
from ..verify.reference import Reference
from .hf import SIDECARS, require_hf_clip, write_hf_sidecars

_SCRIPT, _PACKAGE = "transformers_js.mjs", "@huggingface/transformers"
CARD = """\
Save it as `example.mjs` and run `node example.mjs`, after `npm install @huggingface/transformers`.

```js
import {
  env, AutoProcessor, AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection, RawImage,
} from '@huggingface/transformers'

env.allowRemoteModels = false
env.localModelPath = ''
const folder = process.cwd()
const options = {
  dtype: '{{ "q8" if precision == "int8" else precision }}', device: 'cpu',{% if precision == "fp16" %}
  session_options: { graphOptimizationLevel: 'extended' },{% endif %}
}
const tokenizer = await AutoTokenizer.from_pretrained(folder)
const processor = await AutoProcessor.from_pretrained(folder)
const visual = await CLIPVisionModelWithProjection.from_pretrained(folder, options)
const textual = await CLIPTextModelWithProjection.from_pretrained(folder, options)
const pixels = await processor(await RawImage.read('example.png'))
const image = (await visual(pixels)).image_embeds.normalize(2, -1).tolist()[0]
const tokens = await tokenizer(['a photo of a circle'], { truncation: true })
const text = (await textual(tokens)).text_embeds.normalize(2, -1).tolist()[0]
console.log('image ', ...image.slice(0, 4).map(x => x.toFixed(4)))
console.log('text  ', ...text.slice(0, 4).map(x => x.toFixed(4)))
console.log('cosine', image.reduce((sum, x, i) => sum + x * text[i], 0).toFixed(4))
```

In a browser, set `env.localModelPath` to the address that serves this folder's parent and give the folder's name; there
`wasm` takes the `_quantized` graphs unless `dtype` says otherwise.
"""


def write_transformers_js(model: Model, folder: Path, profile: Profile) -> None:
    """Write both graphs and the configuration; the weights are in the graphs only.

    Raises:
        ExportError: If the target cannot hold the model, its preprocessing or its tokenizer.
    """
    require_hf_clip(model, profile.target)
    write_hf_sidecars(model, folder, profile)
    write_graphs(model, folder, profile)


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    model = _NodeModel(folder, "q8" if profile.precision == "int8" else profile.precision)
    runtime = f"transformers.js {model.version} under Node"
    return Consumer(runtime, model.encode_images, model.embed_images, model.embed_texts)


def _stand_in(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    return load_graphs(folder, reference, profile, preprocess=build_processor(folder / PREPROCESSOR_NAME))


class _NodeModel:
    """A folder of target `transformers-js`, loaded by transformers.js in a process that ends when this object does.

    Raises:
        ImportError: If there is no Node, or it does not find transformers.js.
    """

    def __init__(self, folder: Path, dtype: str):
        node = shutil.which("node")
        if node is None:
            raise ImportError("there is no `node`")
        script = Path(__file__).with_name(_SCRIPT)
        self._process = subprocess.Popen(
            [node, script, folder.resolve(), dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # The finaliser holds the process and not this object, which could otherwise never end.
        weakref.finalize(self, _end, self._process)
        # The first line says that the models are loaded; a failure to load ends the process before it.
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
        # A line that stays in the buffer would leave both sides waiting.
        self._process.stdin.flush()
        return torch.tensor(self._read())

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        # An empty line is the end of its output: what went wrong is on stderr.
        _, said = self._process.communicate()
        reason = _find_reason(said)
        # That Node finds no package is no failure of the export: the stand-in takes over.
        if _PACKAGE in reason and "Cannot find" in reason:
            raise ImportError(f"Node finds no {_PACKAGE} from {Path.cwd()}: `npm install {_PACKAGE}` there")
        raise RuntimeError(f"transformers.js: {reason}")


def _find_reason(said: str) -> str:
    """The error in what Node printed, `Error: ...` or `TypeError [CODE]: ...`; lines of source come before it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    found = next((line for line in lines if re.match(r"(\w*Error|Uncaught)\b[^;{}()]*?:", line)), None)
    return found or (lines[-1] if lines else "it ended without an answer")


def _end(process: subprocess.Popen) -> None:
    process.kill()
    # A killed process must be waited for, or it stays as a zombie.
    process.communicate()


def _require_apart(folder: Path) -> None:
    """Node looks for packages from the working directory upwards."""
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise VerificationError(
            f"cannot verify {folder} from inside: Node looks for its packages there. Change to another folder."
        )


TARGET = Target(
    Profile(
        target="transformers-js",
        # `{suffix}` is how transformers.js finds a precision: its option `dtype` is fp32, fp16 or q8.
        visual=GraphSpec("onnx/vision_model{suffix}.onnx", "pixel_values", "image_embeds"),
        textual=GraphSpec("onnx/text_model{suffix}.onnx", "input_ids", "text_embeds", dynamic_length=True),
        precisions=("fp32", "fp16", "int8"),
        sidecars=SIDECARS,
        resizing=0.9,
    ),
    write=write_transformers_js,
    load=_load,
    card=CARD,
    photos="transformers.js turns photos upright as it reads them.",
    row=TargetRow(
        "`onnx/vision_model.onnx`, `onnx/text_model.onnx` and the files of `hf`",
        "transformers.js under Node, if `NODE_PATH` or the working directory has it",
        "Node and `@huggingface/transformers`",
    ),
    tell=lambda folder, reference, profile: [tell_preprocessor(folder, reference)],
    stand_in=_stand_in,
    require_no_code=_require_apart,
)
