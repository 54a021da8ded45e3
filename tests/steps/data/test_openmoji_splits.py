"""What is held out of OpenMoji: combinations, never concepts."""

import re
from collections import Counter

import pytest

from steps.data.groups import picture_group
from steps.data.openmoji import SPLITS, list_openmoji, split_of
from steps.data.openmoji_splits import NOVEL, TEST, VALIDATION
from steps.pretraining.splits import choose, near_duplicates, words

CAPTIONS = {split: [item.caption for item in list_openmoji() if item.split == split] for split in SPLITS}
TRAIN_WORDS = Counter(word for caption in CAPTIONS["train"] for word in words(caption))


def test_sizes() -> None:
    assert {split: len(captions) for split, captions in CAPTIONS.items()} == {
        "train": 3384,
        "validation": 240,
        "test": 240,
        "novel": 89,
    }
    assert len(set(VALIDATION)) == len(set(TEST)) == 40


def test_no_group_is_in_two_splits() -> None:
    assert len({*VALIDATION, *TEST, *NOVEL}) == len(VALIDATION) + len(TEST) + len(NOVEL)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_held_out_word_is_known_from_other_combinations(split: str) -> None:
    rare = {word for caption in CAPTIONS[split] for word in words(caption) if TRAIN_WORDS[word] < 3}
    assert not rare


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_pair_is_held_out_with_all_its_skin_tones(split: str) -> None:
    pairs = Counter(picture_group(caption) for caption in CAPTIONS[split])
    assert set(pairs.values()) == {6}
    assert all(re.fullmatch(r"(man|woman|person) .+", pair) for pair in pairs)


def test_a_pair_moves_as_a_whole() -> None:
    sides: dict[str, set[str]] = {}
    for item in list_openmoji():
        sides.setdefault(picture_group(item.caption), set()).add(item.split)
    assert all(len(splits) == 1 for splits in sides.values())


def test_every_novel_group_has_a_word_that_train_lacks() -> None:
    known = {
        group
        for group in NOVEL
        if all(
            TRAIN_WORDS[word]
            for caption in CAPTIONS["novel"]
            if picture_group(caption) == group
            for word in words(caption)
        )
    }
    assert not known


def test_an_unknown_caption_is_train() -> None:
    assert split_of("an emoji of next year dark skin tone") == "train"


@pytest.mark.long
def test_near_duplicates_are_on_one_side_and_the_tables_are_the_rules() -> None:
    linked = near_duplicates()
    assert linked["cook"] >= {"cook", "man cook"}  # pixel for pixel the same
    assert "man walking facing right" in linked["person walking"]  # mirrored
    for groups in linked.values():
        assert len({split_of(group) for group in groups}) == 1
    chosen = choose()
    assert (tuple(chosen["validation"]), tuple(chosen["test"]), tuple(chosen["novel"])) == (
        VALIDATION,
        TEST,
        NOVEL,
    )
