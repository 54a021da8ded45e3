"""How the splits of OpenMoji were chosen; prints the tables of `steps.data.openmoji_splits`.

python -m steps.pretraining.splits

Held out for validation and test are combinations of a person and an activity ("woman surfing", all skin tones), never
a concept: every word occurs in at least three train captions of other combinations. A near-duplicate, plain or
mirrored, is on the same side. `novel` are captions with a word that train lacks. See docs/adr/0021.
"""

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import torch

from steps.data.groups import picture_group
from steps.data.openmoji import draw, list_openmoji

PAIRS = 40  # of each of validation and test
KNOWN = 3  # train captions of other combinations that a held-out word occurs in
NEAR = 4.0  # root mean square difference of two drawings, of 255 grey levels, below which they are near-duplicates
_SIZE = 64
_TONES = 6  # captions of one pair: without a tone and with each of five
_NOVEL_SHARE = 0.08  # of all picture groups, by hash; those of them are novel that have an unknown word
_CHUNK = 500
_PAIR = re.compile(r"(?:man|woman|person) (.+)")


def words(caption: str) -> set[str]:
    """The words of a caption, lower case."""
    return set(re.findall(r"\w+", caption.lower()))


def near_duplicates() -> dict[str, set[str]]:
    """Picture group to the groups it must share a side with, itself included."""
    items = list_openmoji()
    groups = [picture_group(item.caption) for item in items]
    images = draw([item.code for item in items], _SIZE)
    linked = {group: {group} for group in groups}
    for first, second in _close_pairs(images):
        one, other = linked[groups[first]], linked[groups[second]]
        if one is not other:
            one |= other
            for member in other:
                linked[member] = one
    return linked


def _close_pairs(images: torch.Tensor) -> Iterable[tuple[int, int]]:
    """Indices of pictures, uint8 (n, 3, h, w), that are near-duplicates of each other or of the other's mirror image."""
    plain = images.flatten(1).float()
    squares = plain.square().sum(1)
    for other in (plain, images.flip(-1).flatten(1).float()):
        for start in range(0, len(plain), _CHUNK):
            rows = slice(start, start + _CHUNK)
            distance = squares[rows, None] + squares[None] - 2 * plain[rows] @ other.T
            for row, column in (distance < NEAR**2 * plain.shape[1]).nonzero().tolist():
                yield start + row, column


def choose() -> dict[str, list[str]]:
    """Picture groups of `validation`, `test` and `novel`, each sorted."""
    captions: dict[str, list[str]] = {}
    for item in list_openmoji():
        captions.setdefault(picture_group(item.caption), []).append(item.caption)
    linked = near_duplicates()
    novel = _novel(captions, linked)
    known = {group: texts for group, texts in captions.items() if group not in novel}
    pairs = _pairs(known, linked)
    return {
        "validation": sorted(pairs[0::2]),
        "test": sorted(pairs[1::2]),
        "novel": sorted(novel),
    }


def _novel(captions: Mapping[str, list[str]], linked: Mapping[str, set[str]]) -> set[str]:
    """The hashed share of groups, without those all of whose words occur elsewhere or that look like another one."""
    chosen = {group for group in captions if _position(group) >= 1.0 - _NOVEL_SHARE}
    while True:
        elsewhere = _counts(texts for group, texts in captions.items() if group not in chosen)
        kept = {
            group
            for group in chosen
            if any(not elsewhere[word] for text in captions[group] for word in words(text))
            and linked[group] <= chosen
        }
        if kept == chosen:
            return chosen
        chosen = kept


def _pairs(captions: Mapping[str, list[str]], linked: Mapping[str, set[str]]) -> list[str]:
    """2 * PAIRS groups by hash; a second one of an activity only when all activities have one."""
    free = [
        group
        for group, texts in captions.items()
        if _PAIR.fullmatch(group) and len(texts) == _TONES and linked[group] == {group}
    ]
    taken: list[str] = []
    for most in (1, 2):
        for group in sorted(free, key=_position):
            same = sum(_activity(group) == _activity(other) for other in taken)
            if len(taken) == 2 * PAIRS or group in taken or same >= most:
                continue
            if words_are_known(captions, {*taken, group}):
                taken.append(group)
    return taken


def words_are_known(captions: Mapping[str, list[str]], held_out: Collection[str]) -> bool:
    """True when every word of the held-out groups occurs in at least KNOWN captions of the others."""
    train = _counts(texts for group, texts in captions.items() if group not in held_out)
    return all(train[word] >= KNOWN for group in held_out for text in captions[group] for word in words(text))


def _activity(group: str) -> str:
    match = _PAIR.fullmatch(group)
    return match[1] if match else group


def _counts(captions: Iterable[Iterable[str]]) -> Counter[str]:
    """Captions that each word occurs in."""
    return Counter(word for texts in captions for text in texts for word in words(text))


def _position(group: str) -> float:
    """Uniform in [0, 1), from the hash of the group's name."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def main() -> None:
    """Print the tables."""
    for split, groups in choose().items():
        sys.stdout.write(f"{split.upper()}: tuple[str, ...] = (\n")
        sys.stdout.writelines(f'    "{group}",\n' for group in groups)
        sys.stdout.write(")\n")


if __name__ == "__main__":
    main()
