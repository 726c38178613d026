"""The error tree: every leaf is complete, unique, documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.api.error_page import errors_markdown, meaning
from service.api.problems import leaves, problem_responses
from service.errors import TagsError

LEAVES = tuple(leaves())
ERRORS_PAGE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.slug)
def test_every_leaf_has_its_own_slug_and_title_and_says_what_to_do(leaf):
    assert {"slug", "title"} <= vars(leaf).keys()
    assert 400 <= leaf.status < 600
    assert len(meaning(leaf)) > 30
    assert leaf().detail == leaf.title


def test_slugs_and_titles_are_unique():
    assert len({leaf.slug for leaf in LEAVES}) == len({leaf.title for leaf in LEAVES}) == len(LEAVES) > 25


def test_the_tree_in_the_docstring_names_every_leaf():
    tree = __import__("service.errors", fromlist=["errors"]).__doc__
    assert [leaf.__name__ for leaf in LEAVES if leaf.__name__ not in tree] == []


def test_the_errors_page_is_up_to_date():
    message = "docs/errors.md is stale: python -m service.api.error_page > docs/errors.md"
    assert ERRORS_PAGE.read_text() == errors_markdown(), message


def test_every_leaf_has_an_openapi_response():
    described = " ".join(response["description"] for response in problem_responses(TagsError).values())
    assert [leaf.slug for leaf in LEAVES if f"`{leaf.slug}`" not in described] == []
