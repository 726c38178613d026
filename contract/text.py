"""How a prompt's text becomes the pair of phrases that CLIP's text tower reads."""

from __future__ import annotations


def phrases(text: str) -> tuple[str, str]:
    """(background phrase, foreground phrase) for a finding such as "liver tumour"."""
    finding = " ".join(text.lower().split())
    return f"a scan without {finding}.", f"a scan of a {finding}."
