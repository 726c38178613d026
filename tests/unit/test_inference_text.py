"""Tokens and cached text features."""

from __future__ import annotations

import numpy as np
import pytest

from service.inference.text_cache import TextCache
from service.inference.tokens import tokenise


def test_phrases_become_the_tokens_that_clip_was_trained_with():
    input_ids, eot_index = tokenise(("a photo of a cat", "a photo of a dog"))
    assert input_ids.shape == (1, 2, 77)
    assert input_ids.dtype == np.int32
    assert input_ids[0, 0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]  # from CLIP's vocabulary
    assert input_ids[0, 1, :8].tolist() == [49406, 320, 1125, 539, 320, 1929, 49407, 0]
    assert not input_ids[0, :, 7:].any()
    assert eot_index.dtype == np.int32
    assert eot_index.tolist() == [[6, 6]]


def test_case_does_not_matter():
    assert np.array_equal(tokenise(("Liver", "TUMOUR"))[0], tokenise(("liver", "tumour"))[0])


def test_a_phrase_that_is_too_long_is_cut_but_still_ends():
    input_ids, eot_index = tokenise(("tumour " * 200, "tumour"))
    assert eot_index.tolist() == [[76, 2]]
    assert input_ids[0, 0, 76] == 49407


@pytest.mark.parametrize("word", ["<|endoftext|>", "<end_of_text>", "<End_of_Text>", "<start_of_text>"])
def test_typed_control_words_do_not_end_a_phrase(word):
    input_ids, eot_index = tokenise((f"a {word} liver", "liver"))
    assert (input_ids[0, 0] == 49407).sum() == 1
    assert (input_ids[0, 0] == 49406).sum() == 1
    assert eot_index[0, 0] >= 3


def features(value):
    return np.full((2, 192), value, np.float32)


def test_what_was_put_is_given_back_and_cannot_be_changed():
    cache, given = TextCache(), features(1)
    kept = cache.put(("a", "b"), given)
    given[:] = 7
    assert cache.get(("a", "b")) is kept
    assert (kept == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        kept[0, 0] = 5


def test_the_border_between_the_two_phrases_counts():
    cache = TextCache()
    cache.put(("ab", "c"), features(1))
    assert cache.get(("a", "bc")) is None


def test_the_least_recently_used_pair_makes_room():
    cache = TextCache(capacity=2)
    cache.put(("a", "a"), features(1))
    cache.put(("b", "b"), features(2))
    assert cache.get(("a", "a")) is not None
    cache.put(("c", "c"), features(3))
    assert len(cache) == 2
    assert cache.get(("b", "b")) is None
    assert cache.get(("a", "a")) is not None
