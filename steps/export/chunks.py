"""A UNet in two packages: the runtime's answer to models larger than a device loads at once.

The runtime runs chunk 1, puts its outputs beside the original inputs by name, and runs chunk 2 on them.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import coremltools as ct
from coremltools.converters.mil.mil import Block, Var
from coremltools.converters.mil.mil import Program as MilProgram
from coremltools.models import utils
from coremltools.proto.Model_pb2 import Model

from artifacts_schema.bundle import Component
from steps.export.contract import CONTRACT_REVISION, DESCRIPTIONS, VERSION_KEY, Contract
from steps.export.convert import known_warnings, make_reproducible
from steps.files.errors import ExportError

logger = logging.getLogger(__name__)


def chunk_names(package: str) -> tuple[str, str]:
    """Apple's file names of a package's chunks."""
    name = package.removesuffix(".mlpackage")
    return f"{name}_chunk1.mlpackage", f"{name}_chunk2.mlpackage"


def split_package(component: Component, package: Path, contract: Contract, folder: Path) -> tuple[Path, ...]:
    """Write `package` into `folder` as two packages of about the same size. Returns their paths in order.

    Raises ExportError when coremltools cannot split it, or the pieces do not fit together as the runtime expects.
    """
    source = ct.models.MLModel(str(package), skip_model_load=True)
    paths = tuple(folder / name for name in chunk_names(package.name))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            with known_warnings(), _corrected_cut():
                # Its own comparison of outputs runs the models, which needs a Mac; the program check takes its place.
                ct.models.utils.bisect_model(str(package), scratch, check_output_correctness=False)
        except (ValueError, RuntimeError, AssertionError, KeyError, IndexError, TypeError) as error:
            raise ExportError(f"{component}: coremltools cannot split it in two: {error}") from error
        for number, path in enumerate(paths, start=1):
            _describe(Path(scratch) / path.name, path, source, component, number)
            make_reproducible(path)
    specs = [ct.models.MLModel(str(path), skip_model_load=True).get_spec() for path in paths]
    check_chunks(component, specs, contract)
    logger.info("component=%s chunks=%s", component, ",".join(path.name for path in paths))
    return paths


@contextmanager
def _corrected_cut() -> Iterator[None]:
    """Within, coremltools 9.0 cuts without two faults; a test fails when a correction is no longer needed.

    It moves the second chunk to iOS16, which lacks what iOS17 programs are made of, such as uint16 indices. And it keeps
    what passes from chunk to chunk in a set ordered by memory addresses: two cuts of one package gave unequal files.
    """
    second_chunk, passing = utils._make_second_chunk_prog, utils._get_first_chunk_outputs

    def at_its_target(program: MilProgram, operation: int) -> MilProgram:
        target = program.functions["main"].opset_version
        chunk = second_chunk(program, operation)
        chunk.functions["main"].opset_version = target
        return chunk

    def as_computed(block: Block, operation: int) -> list[Var]:
        found = set(passing(block, operation))
        made = (var for op in block.operations[: operation + 1] for var in op.outputs)
        return [var for var in made if var in found]

    utils._make_second_chunk_prog, utils._get_first_chunk_outputs = at_its_target, as_computed
    try:
        yield
    finally:
        utils._make_second_chunk_prog, utils._get_first_chunk_outputs = second_chunk, passing


def check_chunks(component: Component, specs: list[Model], contract: Contract) -> None:
    """Raises ExportError unless chunk 2 finds all its inputs and gives the contract's outputs."""
    inputs = {tensor.name for tensor in contract[0]}
    first_inputs = {feature.name for feature in specs[0].description.input}
    between = {feature.name for feature in specs[0].description.output}
    second_inputs = {feature.name for feature in specs[1].description.input}
    outputs = {feature.name for feature in specs[1].description.output}
    unknown = (first_inputs - inputs) | (second_inputs - inputs - between)
    lost = inputs - first_inputs - second_inputs
    if unknown or lost or between & inputs:
        raise ExportError(
            f"{component}: the chunks do not fit: unknown inputs {sorted(unknown)}, unused inputs {sorted(lost)}, "
            f"outputs of chunk 1 named as inputs {sorted(between & inputs)}"
        )
    expected = {tensor.name for tensor in contract[1]}
    if outputs != expected:
        raise ExportError(
            f"{component}: expected the outputs {sorted(expected)} of chunk 2, found {sorted(outputs)}"
        )


def _describe(
    written: Path, target: Path, source: ct.models.MLModel, component: Component, number: int
) -> None:
    """Save a chunk again with what the whole package says of itself, which splitting leaves out."""
    chunk = ct.models.MLModel(str(written), skip_model_load=True)
    chunk.author, chunk.license, chunk.version = source.author, source.license, source.version
    chunk.short_description = f"{DESCRIPTIONS[component]} Part {number} of 2."
    known = {feature.name: feature.shortDescription for feature in source.get_spec().description.input}
    spec = chunk.get_spec()
    for feature in spec.description.input:
        chunk.input_description[feature.name] = known.get(feature.name, "Made by part 1.")
    for feature in spec.description.output:
        ours = number == 1
        chunk.output_description[feature.name] = (
            "For part 2." if ours else source.output_description[feature.name]
        )
    chunk.user_defined_metadata[VERSION_KEY] = CONTRACT_REVISION
    chunk.save(str(target))
    shutil.rmtree(written)
