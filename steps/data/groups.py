"""Which captions name pictures of one group: those that differ in skin tone alone. Imports no torch."""

import re

_TONE = re.compile(r" (?:medium-light|medium-dark|light|medium|dark) skin tone")


def picture_group(caption: str) -> str:
    """The caption without skin tones: what all variants of one picture share, and what is kept in one split."""
    return _TONE.sub("", " " + caption).strip(" ,")
