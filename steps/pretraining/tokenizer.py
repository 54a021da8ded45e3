"""Byte-level BPE in CLIP's conventions, trained on captions.

The entries are laid out as in CLIP: 256 bytes, the same 256 at the end of a word, the merges in the order they
were learned, then `<|startoftext|>` and `<|endoftext|>`. The last one has the highest id, which OpenCLIP's
pooling needs, and pads, as in Stable Diffusion 1.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from steps.files.errors import DataError

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
_SPECIAL = 2
_BYTES = 256


def train_tokenizer(captions: Sequence[str], folder: Path, *, entries: int = 2048) -> Path:
    """Learn at most `entries` entries from captions and save a CLIPTokenizer folder.

    Raises DataError when there are no captions or `entries` leaves no room beside the byte alphabet.
    """
    if not any(caption.strip() for caption in captions):
        raise DataError("expected captions to learn a tokenizer from, found none; check the data's captions")
    if entries < 2 * _BYTES + _SPECIAL:
        raise DataError(
            f"a byte-level tokenizer needs at least {2 * _BYTES + _SPECIAL} entries, found {entries}"
        )
    words, merges = _learn(captions, entries - _SPECIAL - 2 * _BYTES)
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *words, START, END]
    tokenizer = CLIPTokenizer(
        vocab={entry: index for index, entry in enumerate(vocabulary)},
        merges=merges,  # type: ignore[arg-type]  # pairs are what the backend takes
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=END,
        model_max_length=MAX_LENGTH,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json, merges.txt: for Swift runtimes
    return folder


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Read a tokenizer folder; never touches the network."""
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def _learn(captions: Sequence[str], merges: int) -> tuple[list[str], list[tuple[str, str]]]:
    """New entries and merges, in the order learned; words are split as CLIPTokenizer splits them."""
    reference = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = reference.normalizer, reference.pre_tokenizer
    alphabet = sorted(ByteLevel.alphabet())
    seen = {piece[-1] for text in captions for piece, _ in _pieces(learner, text)}
    trainer = trainers.BpeTrainer(
        # The learner counts the bytes it saw (plain and word-final); the caller adds the full alphabet.
        vocab_size=merges + _BYTES + len(seen),
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    import json

    state = json.loads(learner.to_str())["model"]
    pairs = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in state["merges"]]
    learned: list[tuple[str, str]] = [(first, second) for first, second in pairs][:merges]
    return list(dict.fromkeys(first + second for first, second in learned)), learned


def _pieces(learner: Tokenizer, text: str) -> list[tuple[str, tuple[int, int]]]:
    normal = learner.normalizer.normalize_str(text)
    pieces: list[tuple[str, tuple[int, int]]] = learner.pre_tokenizer.pre_tokenize_str(normal)
    return pieces
