"""Carry an index in Qdrant over to the edited encoder, and compare what a search finds before and after.

python examples/reindex_qdrant.py [FOLDER]        (needs `pip install qdrant-client`)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from draw import draw_images
from PIL import Image
from qdrant_client import QdrantClient, models

import clipedit
from clipedit.demo import world
from clipedit.editor.measure.reindex import EmbeddingMap

SHOWN, PAGE = 10, 128


def embed(model: clipedit.Model, scenes: list[world.Scene]) -> torch.Tensor:
    pixels = torch.stack([model.preprocess(Image.fromarray(world.render(scene))) for scene in scenes])
    return F.normalize(model.encode_image(pixels), dim=1)


def create(client: QdrantClient, name: str, size: int) -> None:
    client.create_collection(name, vectors_config=models.VectorParams(size=size, distance=models.Distance.COSINE))


def read_pages(client: QdrantClient, name: str) -> Iterator[list[models.Record]]:
    """All points with their vectors and payloads, a page at a time: an index need not fit in memory."""
    offset = None
    while True:
        points, offset = client.scroll(name, limit=PAGE, offset=offset, with_vectors=True, with_payload=True)
        yield points
        if offset is None:
            return


def carry_over(client: QdrantClient, old: str, new: str, mapping: EmbeddingMap) -> None:
    """Every point of the old collection into the new one, under its id and with its payload."""
    create(client, new, len(mapping.matrix))
    for page in read_pages(client, old):
        vectors = mapping.apply(torch.tensor([point.vector for point in page]), normalised=True)
        client.upsert(
            new,
            [
                models.PointStruct(id=point.id, vector=vector, payload=point.payload)
                for point, vector in zip(page, vectors.tolist(), strict=True)
            ],
        )


def search_quality(client: QdrantClient, name: str, model: clipedit.Model) -> float:
    """Of the first ten that "a photo of a star" finds, the share that shows a star; the mean over all shapes."""
    texts = F.normalize(model.encode_text([f"a photo of a {shape}" for shape in world.SHAPES]), dim=1)
    shares = []
    for shape, text in zip(world.SHAPES, texts.tolist(), strict=True):
        found = client.query_points(name, query=text, limit=SHOWN, with_payload=True).points
        shares.append(sum((point.payload or {})["shape"] == shape for point in found) / SHOWN)
    return sum(shares) / len(shares)


def main(folder: Path) -> None:
    model = clipedit.load_model("demo")
    scan = clipedit.scan(model, draw_images(folder / "images", 1024))
    recipe = clipedit.make_recipe(scan, model, concept="location")
    edited = clipedit.apply_recipe(recipe, model)

    # The old index: unit vectors of the unedited model, every shape in every place equally often.
    client, scenes = QdrantClient(":memory:"), world.draw_balanced_scenes(512, seed=1)
    for name, which in (("old", model), ("embedded again", edited)):
        create(client, name, model.tower.d_embed)
        vectors = embed(which, scenes).tolist()
        points = [
            models.PointStruct(id=index, vector=vector, payload={"shape": scene.shape, "place": scene.place})
            for index, (vector, scene) in enumerate(zip(vectors, scenes, strict=True))
        ]
        client.upsert(name, points)

    carry_over(client, "old", "carried over", clipedit.compute_embedding_map(recipe, scan, model))
    for name, which in (("old", model), ("carried over", edited), ("embedded again", edited)):
        print(f"right among the first {SHOWN}, {name}: {search_quality(client, name, which):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-qdrant"))
