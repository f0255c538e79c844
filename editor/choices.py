"""What can be chosen by name, in the library and on the command line. Nothing here needs torch."""

from __future__ import annotations

from typing import Literal, get_args

# The folder of what is kept from run to run; empty for none.
CACHE_VARIABLE = "CLIPEDIT_CACHE"

Side = Literal["image", "text"]
Effect = Literal["distilled", "total", "direct"]
EFFECTS = get_args(Effect)
DEFAULT_EFFECT: Effect = "distilled"
HeadOperation = Literal["mean-ablate", "zero-ablate", "scale", "project-out", "keep-only", "reweight"]
Along = Literal["texts", "text-span", "pca", "labels"]
Selection = Literal["text-difference", "labelled-contrast", "attention-region", "frontier"]
Reading = Literal["contrast", "positive", "evidence"]
Layout = Literal[
    "table",
    "waterbirds",
    "folders",
    "celeba",
    "fairface",
    "counteranimal",
    "typographic",
    "webdataset",
    "subpopbench",
    "scam",
    "utkface",
    "spawrious",
    "urbancars",
    "spuco",
    "imagenet9",
    "sugarcrepe",
    "parquet",
]
# Photos turned as their EXIF orientation says, or as their pixels are stored, which is how open_clip reads them.
Exif = Literal["upright", "ignore"]
# JPEGs in full, or at a half, a quarter or an eighth where that leaves twice what a model takes.
Decode = Literal["exact", "scaled"]
ScoreMeasure = Literal["covariance-share", "correlation"]
# Of the forward pass of a scan, and as it is asked for; of the weights of an export.
PassPrecision = Literal["fp32", "bf16", "fp16"]
AskedPrecision = Literal["fp32", "bf16", "fp16", "auto"]
WeightPrecision = Literal["fp32", "fp16", "int8"]
