"""The page of `flows.commands.demo`: a prompt in, two pictures out. Gradio is imported when the page is made."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

from steps.files.errors import SnapFusionError

TITLE = "SnapFusion: base and student, from the same noise"
_FONT = ["system-ui", "sans-serif"]  # of the browser: no font is fetched from anywhere


def build_page(students: Mapping[str, Callable[[], Any]], *, steps: int, guidance_scale: float) -> Any:
    """The page as a gradio.Blocks. `students` are what can be chosen, by name, and what opens each: a SideBySide.

    One student at a time is held in memory. Names and messages are shown as text.
    """
    gr = import_module("gradio")
    opened = lru_cache(maxsize=1)(lambda name: students[name]())

    def draw(
        prompt: str, name: str, seed: float | None, guidance: float, steps: int, base_steps: float
    ) -> tuple[Any, Any, str]:
        try:
            base, student = opened(name).draw(
                prompt,
                seed=int(seed or 0),
                guidance_scale=guidance,
                steps=int(steps),
                base_steps=int(base_steps),
            )
        except (SnapFusionError, OSError) as error:
            return None, None, str(error)
        return base and base.picture, student.picture, _times(base, int(base_steps), student, int(steps))

    names = list(students)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            prompt = gr.Textbox(label="Prompt", placeholder="woman surfing", scale=4, elem_id="prompt")
            button = gr.Button("Draw", variant="primary", scale=1, elem_id="draw")
        with gr.Row():
            pictures = [
                gr.Image(label=label, type="pil", format="png", interactive=False, elem_id=label, buttons=[])
                for label in ("base", "student")
            ]
        message = gr.Textbox(label="Time", interactive=False, elem_id="message")
        with gr.Row():
            settings = [
                gr.Dropdown(names, value=names[0], label="Student", elem_id="which"),
                gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed"),
                gr.Slider(1.0, 14.0, value=guidance_scale, step=0.5, label="Guidance scale"),
                gr.Dropdown(sorted({8, 4, 2, steps}, reverse=True), value=steps, label="Student's steps"),
                gr.Slider(8, 50, value=50, step=1, label="Base's steps"),
            ]
        for event in (button.click, prompt.submit):
            event(draw, [prompt, *settings], [*pictures, message], api_visibility="private")
    return page


def serve(page: Any, *, host: str, port: int) -> None:
    """Serve the page until Ctrl-C; only this machine is told of it, and no other one is."""
    gr = import_module("gradio")
    page.queue(default_concurrency_limit=1).launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        theme=gr.themes.Base(font=_FONT, font_mono=["monospace"]),
    )


def _times(base: Any, base_steps: int, student: Any, steps: int) -> str:
    if base is None:
        return f"student: {steps} steps, {student.seconds:.2f} s; there is no base at hand to compare with, see --base"
    return (
        f"base: {base_steps} steps, {base.seconds:.2f} s; student: {steps} steps, {student.seconds:.2f} s, "
        f"{base.seconds / student.seconds:.1f} times as quick"
    )
