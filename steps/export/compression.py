"""Smaller weights in a saved package: palettes (a table of 2^bits numbers and an index a weight) or 8-bit integers.

coremltools writes them; here is which weights, with which table, what is refused, and that equal packages give equal
files. A model that is split into chunks is compressed chunk by chunk: each is a package of its own.
"""

import gc
import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import coremltools as ct
import coremltools.optimize.coreml as optimize
import numpy as np
from coremltools.converters.mil.converter import mil_convert
from coremltools.converters.mil.mil import Program as MilProgram
from coremltools.converters.mil.mil.passes.graph_pass import PassOption
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

from steps.export.convert import known_warnings, make_reproducible
from steps.export.interpreter import Program, read_package
from steps.export.palette import Weight, palette
from steps.files.errors import ExportError

# A table of 256 numbers takes as much as 256 weights: below this many, compression saves next to nothing.
SMALLEST = 2048
UNIFORM = {"palette_8": 8, "palette_6": 6, "palette_4": 4}
BITS = (2, 4, 6, 8)  # of a palette before iOS 18


def weights(program: Program, *, smallest: int = SMALLEST) -> dict[str, Weight]:
    """The weights worth compressing, by name: of `smallest` numbers or more, and not the table of an embedding.

    Raises ExportError naming the first weight of the program, of any size, that is not finite: it would spoil its
    whole palette.
    """
    found = {}
    for op in program.block.operations:
        value = op.outputs[0].val if op.op_type == "const" else None
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            continue
        bad = int((~np.isfinite(value)).sum())
        if bad:
            raise ExportError(
                f"{program.component}: expected finite weights, found {bad} NaN or infinite values in {op.name}; "
                "export it again"
            )
        users = {child.op_type for child in op.outputs[0].child_ops}
        if value.ndim > 1 and value.size >= smallest and users and not users & {"gather", "gather_nd"}:
            found[op.name] = value
    return found


def compress(
    component: str,
    source: Path,
    target: Path,
    scheme: str | Mapping[str, int],
    *,
    smallest: int = SMALLEST,
) -> None:
    """Write the package `source` with compressed weights to `target`.

    `scheme` is the name of a scheme for all weights, or the bits of each weight's palette by name; a weight that is
    not named stays as it is. Nothing else of the program changes. Raises ExportError as `weights` does, before
    anything is compressed, and where coremltools fails; `target` is then not there.
    """
    spec, program = read_package(component, source)
    names = weights(Program(component, program.functions["main"]), smallest=smallest)
    with known_warnings():
        try:
            _apply(program, scheme, names)
            model = mil_convert(
                program,
                convert_to="mlprogram",
                convert_from="milinternal",
                specification_version=spec.specificationVersion,
                compute_units=ct.ComputeUnit.ALL,
                model_description=spec.description,
                skip_model_load=True,
                pass_pipeline=ct.PassPipeline.EMPTY,
            )
            model.save(str(target))
            make_reproducible(target)
        except (ValueError, RuntimeError, AssertionError, TypeError, KeyError, OSError) as error:
            shutil.rmtree(target, ignore_errors=True)
            raise ExportError(
                f"{component}: coremltools could not compress it as {scheme}: {error}"
            ) from error
        finally:
            model = program = None
            gc.collect()  # coremltools leaves the removal of its scratch folders to the garbage collector


def _apply(program: MilProgram, scheme: str | Mapping[str, int], names: Iterable[str]) -> None:
    """Compress the weights of a loaded program in place."""
    if scheme == "linear_8":
        linear = optimize.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=0
        )
        _run("compression::linear_quantize_weights", program, dict.fromkeys(names, linear))
        return
    bits = dict.fromkeys(names, UNIFORM[scheme]) if isinstance(scheme, str) else dict(scheme)
    unknown = sorted(set(bits) - set(names))
    if unknown:
        raise ValueError(f"it has no weights {', '.join(unknown)}")
    palettes = {name: _palette(count) for name, count in bits.items()}
    _run("compression::palettize_weights", program, palettes)


def _run(name: str, program: MilProgram, by_weight: Mapping[str, object]) -> None:
    graph_pass = PASS_REGISTRY[name]
    graph_pass.set_options(
        [PassOption("config", optimize.OptimizationConfig(op_name_configs=dict(by_weight)))]
    )
    graph_pass.apply(program)


def _palette(bits: int) -> optimize.OpPalettizerConfig:
    return optimize.OpPalettizerConfig(
        mode="custom", lut_function=partial(palette, bits=bits), weight_threshold=0
    )
