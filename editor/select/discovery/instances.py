"""From a few heads to the texts that they speak of, and from those to instances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...concepts.concepts import plain_words
from ..head_subsets import HeadSubsets
from ..whose_heads import LEAST_VARIANCE

# Heads speak of a text where they hold at least so much of it as of the text that they hold most of.
SPOKEN = 0.5
# Texts are one instance where the heads read them alike.
ALIKE = 0.7
# An instance stands at least so far from the mean of all as the one that stands farthest.
APART = 0.4
# One thing against everything else looks like two instances: a candidate has more, so that one of them can be left out.
# Two may be a concept of two values, if each has wordings to leave out: a person has to say so.
LEAST_INSTANCES, MOST_INSTANCES, MOST_TEXTS = 3, 16, 8
VALUES, LEAST_WORDINGS = 2, 2
_LONGEST_NAME = 24


@dataclass(frozen=True)
class Pool:
    """Texts that heads may be named by, and their unit embeddings."""

    texts: tuple[str, ...]
    unit: Float[Tensor, "text d_embed"]

    @cached_property
    def centred(self) -> Float[Tensor, "text d_embed"]:
        """Without what all texts share."""
        return self.unit - self.unit.mean(0)


def find_spoken(pool: Pool, subsets: HeadSubsets, heads: Sequence[int]) -> list[int]:
    """The texts whose variance these heads hold most of, as positions in the pool."""
    # [d_embed, d_embed]: covariance of what the heads write with the whole embedding.
    joint = sum(subsets.readouts[head] @ subsets.cross[head] @ subsets.readout[:-1] for head in heads)
    along = subsets.variances(pool.centred.T)
    varies = along >= LEAST_VARIANCE * subsets.usual_variance(pool.centred) * pool.centred.square().sum(1)
    shares = ((pool.centred @ joint) * pool.centred).sum(1) / along.clamp_min(torch.finfo(along.dtype).tiny)
    shares = torch.where(varies, shares, 0.0)
    return ((shares >= SPOKEN * shares.max()) & (shares > 0)).nonzero().flatten().tolist()


def cut_instances(
    pool: Pool, spoken: Sequence[int], factors: Float[Tensor, "head d_embed k"]
) -> dict[str, tuple[str, ...]]:
    """Texts by instance: those that some heads read alike, the instance that stands out most first.

    Each instance is led by the text that stands farthest from the mean; no random number is drawn.
    """
    # [text, d_embed], [head, d_embed, k] -> [text, head * k]: how the heads read each text
    read = torch.einsum("te,hek->thk", pool.centred[list(spoken)], factors).flatten(1)
    read = read - read.mean(0)
    far, unit = read.norm(dim=1), F.normalize(read, dim=1)
    left = far >= APART * far.max()
    found: list[list[str]] = []
    while bool(left.any()) and len(found) < MOST_INSTANCES:
        leader = int(torch.where(left, far, -1.0).argmax())
        alike = unit @ unit[leader]
        members = (left & (alike >= ALIKE)).nonzero().flatten().tolist()
        nearest = sorted(members, key=lambda row: -float(alike[row]))[:MOST_TEXTS]
        found.append([pool.texts[spoken[row]] for row in nearest])
        left &= alike < ALIKE
        # Rounding must not keep a leader out of its own instance.
        left[leader] = False
    return dict(zip(name_instances(found), map(tuple, found), strict=True))


def name_instances(instances: Sequence[Sequence[str]]) -> list[str]:
    """For each the word that most of its texts have and hardly any other: `forest`."""
    words = [Counter(word for text in texts for word in set(plain_words(text).split())) for texts in instances]
    total = sum(words, Counter())
    names: list[str] = []
    for number, own in enumerate(words):
        others = total - own
        inside, outside = len(instances[number]), max(1, sum(map(len, instances)) - len(instances[number]))
        # Of words that tell equally much apart the longest: "forest" before "a".
        telling = {word: (own[word] / inside - others[word] / outside, len(word), word) for word in own}
        ranked = sorted(own, key=telling.__getitem__, reverse=True)
        free = [word[:_LONGEST_NAME] for word in ranked if word[:_LONGEST_NAME] not in names]
        names.append(free[0] if free else f"instance {number + 1}")
    return names
