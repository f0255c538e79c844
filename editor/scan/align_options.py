"""How an aligner is learnt, each default in this one place. Nothing here needs torch: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AlignOptions:
    """How an aligner is learnt; the defaults are the paper's.

    Attributes:
        penalty: `lambda`, the weight of the orthogonality penalty; 0 leaves it out.
        shared_map: One map for all components: an ablation.
        patience: Stop after so many batches without a new minimum of the loss.
        held_out: Share of the images that the report is made on; no map is learnt from them.
    """

    penalty: float = 1.0
    shared_map: bool = False
    epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 3e-4
    weight_decay: float = 1e-6
    patience: int = 50
    held_out: float = 0.1
    seed: int = 0
