"""Text features by phrase: the text tower's output is a constant per phrase, so it is computed once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np

CAPACITY = 4096  # pairs of phrases: 6 MB at width 192, 25 MB at 768


class TextCache:
    """The most recently used text features. Used from the event loop only, so it needs no lock.

    Keyed by SHA-256, so that what users typed is not kept. One per engine: features belong to one bundle.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._features: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._features)

    def get(self, phrases: tuple[str, str]) -> np.ndarray | None:
        """(2, width) float32, read-only, or None."""
        key = _key(phrases)
        features = self._features.get(key)
        if features is not None:
            self._features.move_to_end(key)
        return features

    def put(self, phrases: tuple[str, str], features: np.ndarray) -> np.ndarray:
        """Keep a read-only copy, which is given back."""
        kept = features.copy()
        kept.flags.writeable = False
        self._features[_key(phrases)] = kept
        if len(self._features) > self._capacity:
            self._features.popitem(last=False)
        return kept


def _key(phrases: tuple[str, str]) -> bytes:
    # The length of the first phrase keeps ("ab", "c") and ("a", "bc") apart.
    background, foreground = (phrase.encode() for phrase in phrases)
    return hashlib.sha256(len(background).to_bytes(8) + background + foreground).digest()
