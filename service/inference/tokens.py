"""Phrases to CLIP's tokens, without torch: what `clip_text_embedder` reads."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
from instant_clip_tokenizer import Tokenizer

from contract.tensors import CONTEXT_LENGTH, END_OF_TEXT

CONTROL_WORDS = re.compile("<(start|end)_of_text>", re.IGNORECASE)  # the tokenizer would take them for its own marks


@cache
def _tokenizer() -> Tokenizer:
    """CLIP's byte-pair vocabulary; 0.1 s to load, then free of state."""
    return Tokenizer()


def tokenise(phrases: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a background and a foreground phrase. A phrase of more than 75 tokens is cut.

    Returns: input_ids (1, 2, 77) int32: start 49406, tokens, end 49407, zeros. eot_index (1, 2) int32: the place of
        each phrase's first 49407.
    """
    plain = [CONTROL_WORDS.sub(" ", phrase) for phrase in phrases]
    input_ids = _tokenizer().tokenize_batch(plain, context_length=CONTEXT_LENGTH).astype(np.int32)
    eot_index = np.argmax(input_ids == END_OF_TEXT, axis=1).astype(np.int32)
    return input_ids[np.newaxis], eot_index[np.newaxis]
