"""Export an edited model to ONNX, and run the graphs with nothing but ONNX Runtime and NumPy.

python examples/onnx_runtime.py [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from draw import draw_images
from PIL import Image

import clipedit


def main(folder: Path) -> None:
    model = clipedit.load_model("demo")
    images = draw_images(folder / "images", 512)
    recipe = clipedit.make_recipe(clipedit.scan(model, images), model, concept="location")
    edited = clipedit.apply_recipe(recipe, model)
    clipedit.export_model(edited, folder / "onnx", target="onnx")
    # clip.json says what the graphs expect: size, mean and standard deviation of the pixels.
    print("clip.json:", ", ".join(json.loads((folder / "onnx" / "clip.json").read_text())))

    pixels = torch.stack([edited.preprocess(Image.open(path)) for path in sorted(images.glob("*.png"))[:4]])
    session = onnxruntime.InferenceSession(folder / "onnx" / "visual.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    with torch.inference_mode():
        expected = edited.encode_image(pixels).numpy()
    print("largest difference to PyTorch:", float(np.abs(found - expected).max()))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-onnx"))
