"""Serve a model and its edits from one ONNX session: each request says which edit it wants.

python examples/serve.py [FOLDER]        (needs `pip install fastapi uvicorn`)

Writes a switchable export, serves it on this machine only, asks it from eight threads, and stops. To keep serving:
`uvicorn.run(build_app(folder))`. Then `curl --data-binary @photo.png 'localhost:8000/embed?edit=remove-location'`.
"""

from __future__ import annotations

import io
import json
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from draw import draw_images
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

import clipedit

BASE, MOST_BYTES, MOST_REQUESTS = "base", 20_000_000, 64
# Pillow knows more formats, some of which start other programs.
FORMATS = ("JPEG", "PNG", "WEBP")
Embed = Callable[[bytes, str], np.ndarray]


def open_encoder(folder: Path) -> tuple[Embed, list[str]]:
    """Bytes of an image and the name of an edit to an embedding; and the names that there are."""
    described = json.loads((folder / "clip.json").read_text())
    preprocess = image_transform_v2(PreprocessCfg(**described["preprocess_cfg"]), is_train=False)
    session = onnxruntime.InferenceSession(folder / "visual.onnx", providers=["CPUExecutionProvider"])
    # The options of a run point to the adapter: both are kept as long as the server lives.
    adapters, options = {}, {BASE: onnxruntime.RunOptions()}
    for name, files in described["adapters"].items():
        adapters[name], options[name] = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
        adapters[name].Load(str(folder / files["visual.onnx"]))
        options[name].add_active_adapter(adapters[name])

    def embed(content: bytes, edit: str, kept: object = adapters) -> np.ndarray:
        pixels = preprocess(Image.open(io.BytesIO(content), formats=FORMATS))[None].numpy()  # type: ignore[operator, index]
        return session.run(None, {"image": pixels}, options[edit])[0][0]

    return embed, list(options)


def build_app(folder: Path) -> FastAPI:
    """`GET /edits`, and `POST /embed?edit=NAME` with the bytes of an image: its embedding, not normalised."""
    app, (embed, names) = FastAPI(), open_encoder(folder)

    @app.get("/edits")
    def list_edits() -> list[str]:
        return names

    @app.post("/embed")
    async def embed_image(request: Request, edit: str = BASE) -> list[float]:
        if edit not in names:
            raise HTTPException(404, f"unknown edit {edit!r}. There are: {', '.join(names)}.")
        content = b""
        async for part in request.stream():
            content += part
            if len(content) > MOST_BYTES:
                raise HTTPException(413, f"an image of more than {MOST_BYTES} bytes. Send a smaller one.")
        try:
            # The session releases Python's lock while it runs: threads serve requests side by side.
            return (await run_in_threadpool(embed, content, edit)).tolist()
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise HTTPException(400, f"no image that can be read: {error}") from None

    return app


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address of a server on a free port of this machine, until the block is left."""
    # More requests at once than that are answered 503, and cost nothing.
    bounds = {"limit_concurrency": MOST_REQUESTS, "log_level": "error"}
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, **bounds))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def ask(address: str, content: bytes, edit: str) -> np.ndarray:
    with urllib.request.urlopen(f"{address}/embed?edit={edit}", data=content, timeout=60) as answer:
        return np.array(json.load(answer), dtype=np.float32)


def main(folder: Path, count: int = 400) -> None:
    model = clipedit.load_model("demo")
    images = draw_images(folder / "images", 512)
    scan = clipedit.scan(model, images)
    recipes = [clipedit.make_recipe(scan, model, concept=concept) for concept in ("location", "color")]
    clipedit.export_model(model, folder / "onnx", target="onnx", switchable=recipes, overwrite=True)

    contents = [path.read_bytes() for path in sorted(images.glob("*.png"))[:8]]
    embed, names = open_encoder(folder / "onnx")
    expected = {(index, name): embed(content, name) for index, content in enumerate(contents) for name in names}
    keys = list(expected)
    asked = [keys[index % len(keys)] for index in range(count)]
    with serving(build_app(folder / "onnx")) as address, ThreadPoolExecutor(8) as pool:
        started = time.perf_counter()
        answers = list(pool.map(lambda key: ask(address, contents[key[0]], key[1]), asked))
        seconds = time.perf_counter() - started
    wrong = sum(not np.allclose(found, expected[key], atol=1e-5) for key, found in zip(asked, answers, strict=True))
    print(f"edits served: {', '.join(names)}")
    print(f"{count} requests from 8 threads, {count / seconds:.0f} a second")
    print(f"answers that differ from a single thread's: {wrong}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-serve"))
