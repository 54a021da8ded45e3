"""SnapFusion: from a Stable-Diffusion-style model to an 8-step one for phones.

    python flows/snapfusion_flow.py run
    python flows/snapfusion_flow.py --config config configs/smoke.toml run
    python flows/snapfusion_flow.py resume

A step body reads records, calls one stage and stores its record. Weights never pass through Metaflow: records refer to
them in the content-addressed store.
"""

# ruff: noqa: E402 - the environment must be prepared before metaflow is imported
from flows.environment import CODE_ROOT, prepare

prepare()

from typing import Any

from metaflow import Config, FlowSpec, card, current, package_sources, project, step

from flows import parts, promotion, stages
from flows.config import parse
from flows.remote import RemoteCompute
from flows.runtime import pack, read_config, unpack
from flows.schedule import Scheduled
from flows.shipped import evaluate_bundle, further_students
from flows.stage_card import register
from flows.tags import tag_run

register()

DEFAULT_CONFIG = str(CODE_ROOT / "configs" / "openmoji.toml")


@RemoteCompute()
@Scheduled()
@project(name="snapfusion")
@package_sources(
    ["../steps", "../artifacts_schema", "../flows", "../configs"],
    suffixes=[".py", ".json", ".toml", ".sh", ".swift"],
)
class SnapFusionFlow(FlowSpec):
    """The whole method, one stage per step."""

    config = Config("config", default=DEFAULT_CONFIG, parser=parse, help="TOML file; presets are in configs/")

    @card(type="stage", id="progress")
    @step
    def start(self) -> None:
        """Preflight: check everything that can fail cheaply, prepare the data once."""
        tag_run(read_config(self))
        self.start_record = pack(stages.start(read_config(self)))
        self.next(self.latency_profile)

    @card(type="stage", id="progress")
    @step
    def latency_profile(self) -> None:
        """Time every block of the base."""
        stages.latency_profile(self)
        self.next(self.velocity_finetuning)

    @card(type="stage", id="progress")
    @step
    def velocity_finetuning(self) -> None:
        """Turn the eps-prediction UNet into a v-prediction UNet."""
        stages.run(self, "velocity_finetuning")
        self.next(self.robust_training, self.teacher_16, self.decoder_distillation)

    @card(type="stage", id="progress")
    @step
    def robust_training(self) -> None:
        """Train with blocks skipped at random."""
        stages.run(self, "robust_training")
        self.next(self.architecture_evolution)

    @card(type="stage", id="progress")
    @step
    def architecture_evolution(self) -> None:
        """Remove and copy blocks until the latency budget holds."""
        stages.run(self, "architecture_evolution")
        self.next(self.student_16)

    @card(type="stage", id="progress")
    @step
    def student_16(self) -> None:
        """Distil the evolved UNet from 32 steps, its own or the full UNet's, to 16."""
        stages.run(self, "student_16")
        self.next(self.distillation_inputs)

    @card(type="stage", id="progress")
    @step
    def teacher_16(self) -> None:
        """Distil the full UNet from its own 32 steps to 16, CFG-aware."""
        stages.run(self, "teacher_16")
        self.next(self.distillation_inputs)

    @card(type="stage", id="progress")
    @step
    def decoder_distillation(self) -> None:
        """Distil the half-width image decoder."""
        stages.run(self, "decoder_distillation")
        self.next(self.distillation_inputs)

    @step
    def distillation_inputs(self, inputs: Any) -> None:
        """Join the three branches' records."""
        self.merge_artifacts(inputs)
        self.next(self.student_8)

    @card(type="stage", id="progress")
    @step
    def student_8(self) -> None:
        """Distil 16 steps to 8: the teacher is teacher_16, the start is student_16 (or the teacher, see run.skip)."""
        stages.run(self, "student_8")
        for name in further_students(read_config(self)):
            stages.run(self, name)
        self.next(self.plan_evaluation, self.plan_export)

    @card(type="stage", id="progress")
    @step
    def plan_evaluation(self) -> None:
        """Measure the real pictures, then one evaluation task per variant."""
        stages.run(self, "real_pictures")
        self.variants = parts.variants(read_config(self))
        self.next(self.evaluation, foreach="variants")

    @card(type="stage", id="progress")
    @step
    def evaluation(self) -> None:
        """Choose one variant's guidance scale on the validation split, then draw and measure it."""
        guidance = stages.run(self, "guidance_selection", self.input)
        stages.run(self, "evaluation", self.input, {f"guidance_selection {self.input}": guidance})
        self.next(self.evaluation_summary)

    @step
    def evaluation_summary(self, inputs: Any) -> None:
        """Join the variants' records."""
        self.guidance_selection_records = {item.input: item.guidance_selection_record for item in inputs}
        self.evaluation_records = {item.input: item.evaluation_record for item in inputs}
        self.merge_artifacts(inputs, exclude=["guidance_selection_record", "evaluation_record"])
        self.next(self.shipped_evaluation)

    @step
    def plan_export(self) -> None:
        """One export task per component."""
        self.components = list(read_config(self).coreml_export.components)
        self.next(self.coreml_export, foreach="components")

    @card(type="stage", id="progress")
    @step
    def coreml_export(self) -> None:
        """Convert one component to Core ML."""
        stages.run(self, "coreml_export", self.input)
        self.next(self.coreml_compression)

    @card(type="stage", id="progress")
    @step
    def coreml_compression(self, inputs: Any) -> None:
        """Find the smallest weights with which the whole bundle still draws the same pictures."""
        self.coreml_export_records = {item.input: item.coreml_export_record for item in inputs}
        self.merge_artifacts(inputs, exclude=["coreml_export_record"])
        stages.run(self, "coreml_compression")
        self.next(self.bundle)

    @card(type="stage", id="progress")
    @step
    def bundle(self) -> None:
        """Put the components, the tokenizer and the manifest into one folder, and draw with it."""
        stages.bundle(self)
        self.next(self.shipped_evaluation)

    @card(type="stage", id="progress")
    @step
    def shipped_evaluation(self, inputs: Any) -> None:
        """Draw and measure the packages that ship, beside the models that they were made of."""
        self.merge_artifacts(inputs, exclude=["variants", "components"])
        evaluate_bundle(self)
        self.next(self.report)

    @card(type="blank", id="report")
    @step
    def report(self) -> None:
        """One card and one report.json with everything a person wants to see."""
        stages.report(self, current.card["report"])
        self.next(self.end)

    @step
    def end(self) -> None:
        """Promote or keep the champion, tag the run, and say where everything is."""
        report = unpack(self.report_record)
        self.promotion = promotion.at_end(self)
        tag_run(read_config(self), report, unpack(self.architecture_evolution_record))
        stages.end(report, current.run_id)


if __name__ == "__main__":
    SnapFusionFlow()
