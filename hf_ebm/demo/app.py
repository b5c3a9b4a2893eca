"""The page: a tab for each thing to try, in words for somebody who never heard of energy-based models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from hf_ebm.demo import generation, limits, pictures, reconstruction, verdict
from hf_ebm.demo.demo_models import DemoModel
from hf_ebm.demo.examples import write_examples
from hf_ebm.demo.upload_field import make_upload_field
from hf_ebm.demo.uploads import read_upload
from hf_ebm.scoring.scores import SCORE_WORDS

THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # nothing fetched
CSS = """
.gradio-container { max-width: 1100px !important; width: 100%; margin: 0 auto; }
.prose { overflow-wrap: anywhere; }
.small-picture img, .samples img, .gallery img { image-rendering: pixelated; }
.small-picture img, .samples img { width: 100% !important; height: 100% !important; object-fit: contain !important; }
.small-picture img { border: 1px solid var(--neutral-400); background: white; }
.answer:not(:has(.md > *)) { display: none; }
input[role=combobox] { padding-right: var(--size-7) !important; text-overflow: ellipsis; }
.samples .grid-wrap { min-height: 0 !important; max-height: none !important; }
.samples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; grid-auto-rows: auto; }
.samples .gallery-item, .samples .thumbnail-lg { aspect-ratio: 1 / 1; height: auto !important; min-height: 0; }
.figure img { width: 100%; }
"""
WORDS = gr.I18n(en={"common.complete": "Done"})  # a screen reader says it after a run; Gradio 6.31 lacks the word
WHAT = """# {name}

This model has looked at {subject} and learned what is usual among them. It gives every picture a number, the
**energy**: low for what looks usual, high for what looks odd. It can also draw new pictures.
"""
LIMITS = f"""The energy is not a probability, knows nothing but the kind of picture the model was trained on, and can
be fooled. Pictures may be PNG, JPEG, WebP, GIF or BMP files of up to {limits.MAX_UPLOAD_BYTES // 2**20} MB. What you
upload is used for your answer alone and deleted within an hour."""
DENOISING = """It starts from noise and cleans it up in a few steps. The strip shows the first pictures on their way,
the curve how their energy falls."""
CHAIN = """A network draws a picture at once (*start*); then small steps down the energy, with a little noise, make it
more likely (a *Langevin chain*). The strip shows the first pictures on their way, the curve how their energy falls."""
CHECK = """Give it any picture: does it look like those the model learned from? It is cropped to a square, shrunk to
{size} x {size} pixels and compared."""
REBUILD = """The model describes your picture by {latents} numbers and draws it again from them: a first guess, then one
that small steps with a little noise make better, as a rule. What it does not know it cannot rebuild."""
BLEND = """A walk from one picture to another, through pictures that the model finds in between. The ends are the
model's own, too: your pictures as it rebuilds them, or, without a picture, drawn from a seed."""
EXAMPLES = "No file at hand? Three the model drew, one inverted, one shuffled, noise"


def plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose `ValueError` is shown in the page, in its own words."""

    @functools.wraps(function)
    def call(*values: Any) -> Any:
        try:
            return function(*values)
        except ValueError as error:
            raise gr.Error(str(error), duration=8, print_exception=False) from error

    return call


def on_click(button: gr.Button, function: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> Any:
    """See `queue_after`."""
    return queue_after(button.click, function, inputs, outputs)


def queue_after(event: Callable[..., Any], function: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> Any:
    """Run `function` after an event; all such calls share one queue, in which one runs at a time.

    When it fails its outputs are emptied: an earlier answer must not stand beside a new question.
    """
    called = event(
        plainly(function), inputs, outputs, concurrency_limit=1, concurrency_id="model", api_visibility="private"
    )
    nothing = None if len(outputs) == 1 else [None] * len(outputs)  # Gradio takes a list for one output's value
    called.failure(lambda: nothing, None, outputs, api_visibility="private", queue=False)
    return called


def empty_on_change(field: Any, outputs: list[Any]) -> None:
    """Empty an answer when another picture or score is chosen: it would seem to be about that."""
    field.change(lambda: [None] * len(outputs), None, outputs, api_visibility="private", queue=False)


def make_figure(label: str) -> gr.Image:
    """Where a figure appears, under its heading."""
    gr.Markdown(f"#### {label}")
    return gr.Image(
        label=label,
        show_label=False,
        format="png",
        interactive=False,
        buttons=[],
        elem_classes="figure",
        alt_text=label,
    )


def make_chain_steps(value: int) -> gr.Slider:
    """The slider for the steps of a chain."""
    return gr.Slider(0, limits.MAX_CHAIN_STEPS, min(value, limits.MAX_CHAIN_STEPS), step=1, label="Steps")


def about_steps(low: int, high: int) -> str:
    """What is said of a sampler's steps."""
    return "fewer are quicker" if low < high else f"this sampler always takes {high}"


def draw_tab(model: DemoModel, ordinary: verdict.Reference) -> None:
    """Generation with its filmstrip and energy curve."""
    gr.Markdown(CHAIN if model.is_dual_mcmc else DENOISING)
    samplers = list(generation.samplers_of(model))
    low, default, high = generation.step_limits(model, samplers[0])
    with gr.Row():
        with gr.Column(scale=2):
            number = gr.Slider(1, limits.MAX_IMAGES, 8, step=1, label="Pictures")
            sampler = gr.Dropdown(samplers, value=samplers[0], label="Sampler", info="how the steps are taken")
            smallest = 0 if model.is_dual_mcmc else 1
            steps = gr.Slider(
                smallest, high, default, step=1, label="Steps", interactive=low < high, info=about_steps(low, high)
            )
            seed = gr.Number(0, label="Seed", info="the same seed draws the same pictures")
            button = gr.Button("Draw", variant="primary")
            others = gr.Button("Draw others")
        with gr.Column(scale=3):
            gr.Markdown("#### New pictures")
            images = gr.Gallery(
                label="New pictures", show_label=False, columns=4, format="png", elem_classes="samples", height="auto"
            )
            figure = make_figure("On their way, and their energy")
            summary = gr.Markdown()

    def draw(number: Any, sampler: Any, steps: Any, seed: Any) -> tuple[Any, Any, str]:
        drawn = generation.draw(model, number, sampler, steps, seed)
        first, last = (float(drawn.energies[point].mean()) for point in (0, -1))
        text = f"Mean energy: **{last:#.4g}**."
        if len(drawn.energies) > 1:
            text = f"Mean energy: {first:#.4g} at the beginning of the curve, **{last:#.4g}** at its end."
        if ordinary.threshold is not None:
            odd, usual = int((drawn.energies[-1] > ordinary.threshold).sum()), float(ordinary.scores.mean())
            text += (
                f" {ordinary.name.capitalize()}: {usual:#.4g}. The check would call {odd} of the "
                f"{drawn.energies.shape[1]} odd."
            )
            if odd > 0:
                text += " What a model draws is often odder than real pictures."
        if drawn.acceptance_rate is not None:
            text += (
                f" This sampler tries steps and takes those that suit the energy: here {drawn.acceptance_rate:.0%} of "
                "them. Where it takes few, the pictures hardly change."
            )
        return model.pipeline.post_process(drawn.images, "pil"), pictures.filmstrip(drawn, ordinary), text

    def fit_steps(sampler: Any) -> Any:
        low, default, high = generation.step_limits(model, sampler)
        return gr.update(value=default, interactive=low < high, info=about_steps(low, high))

    inputs, outputs = [number, sampler, steps, seed], [images, figure, summary]
    sampler.change(plainly(fit_steps), sampler, steps, api_visibility="private", queue=False)
    on_click(button, draw, inputs, outputs)
    next_seed = others.click(
        lambda seed: (int(seed or 0) + 1) % (limits.MAX_SEED + 1), seed, seed, api_visibility="private", queue=False
    )
    queue_after(next_seed.then, draw, inputs, outputs)


def check_tab(model: DemoModel, references: dict[str, verdict.Reference], examples: list[str]) -> None:
    """Is a picture like those the model learned from?"""
    gr.Markdown(CHECK.format(size=model.sample_shape[-1]))
    scores = [(f"{name.replace('_', ' ')}: {SCORE_WORDS[name]}", name) for name in verdict.available_scores(model)]
    with gr.Row():
        with gr.Column(scale=2):
            upload = make_upload_field("Your picture", height=240)
            gr.Examples([[path] for path in examples], upload, label=EXAMPLES)
            score = gr.Dropdown(scores, value="energy", label="Score", info="how oddness is measured")
            button = gr.Button("Check this picture", variant="primary")
        with gr.Column(scale=3):
            text = gr.Markdown(elem_classes="answer")
            figure = make_figure("Its place among other pictures")
            gr.Markdown("#### What the model sees")
            seen = gr.Image(
                label="What the model sees",
                show_label=False,
                format="png",
                interactive=False,
                height=160,
                buttons=[],
                elem_classes="small-picture",
            )
            note = gr.Markdown()

    def check(path: str | None, score: Any) -> tuple[str, Any, Any, str]:
        given = read_upload(path, model.sample_shape, padding=model.padding)
        found = verdict.judge(model, given.x, score)
        figure = pictures.score_histogram(references[score], found.score, score)
        note = f"Before it was looked at, your picture was {given.changes}." if given.changes else ""
        return found.text, figure, model.pipeline.post_process(given.x, "pil")[0], note

    answer = [text, figure, seen, note]
    on_click(button, check, [upload, score], answer)
    for field in (upload, score):
        empty_on_change(field, answer)


def rebuild_tab(model: DemoModel, examples: list[str]) -> None:
    """Reconstruction by the inference model, and by the z-chain after it."""
    gr.Markdown(REBUILD.format(latents=model.pipeline.generator_model.config.latent_dim))
    with gr.Row():
        with gr.Column(scale=2):
            upload = make_upload_field("Your picture", height=240)
            gr.Examples([[path] for path in examples], upload, label=EXAMPLES)
            steps = make_chain_steps(10)
            seed = gr.Number(0, label="Seed")
            button = gr.Button("Rebuild", variant="primary")
        with gr.Column(scale=3):
            figure = make_figure("Rebuilt, and the error along the way")
            note = gr.Markdown()

    def rebuild(path: str | None, steps: Any, seed: Any) -> tuple[Any, str]:
        given = read_upload(path, model.sample_shape, padding=model.padding)
        rebuilt = reconstruction.rebuild(model, given.x, steps, seed)
        note = "The error is the mean squared difference per pixel, where black is -1 and white 1."
        if given.changes:
            note += f" Before, your picture was {given.changes}."
        return pictures.reconstruction_picture(rebuilt), note

    on_click(button, rebuild, [upload, steps, seed], [figure, note])
    empty_on_change(upload, [figure, note])


def blend_tab(model: DemoModel, examples: list[str]) -> None:
    """Interpolation between two pictures or seeds."""
    gr.Markdown(BLEND)
    ends: list[Any] = []
    with gr.Row():
        for seed, which in enumerate(("First", "Second")):
            with gr.Column():
                upload = make_upload_field(f"{which} picture (or none)", height=220)
                gr.Examples([[path] for path in examples], upload, label="Examples")
                ends += [upload, gr.Number(seed, label=f"{which} seed, without a picture")]
    frames = gr.Slider(2, limits.MAX_FRAMES, 6, step=1, label="Frames")
    button = gr.Button("Blend", variant="primary")
    figure = make_figure("From one to the other, and their energy")

    def blend(*values: Any) -> Any:
        return pictures.blend_picture(*reconstruction.blend(model, *values))

    on_click(button, blend, [*ends, frames], [figure])


def build_page(model: DemoModel, folder: Path) -> gr.Blocks:
    """The page for `model`; `folder`, existing, is where its example files go."""
    own_samples = model.pipeline(
        verdict.NUM_OWN_SAMPLES, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).images.cpu()
    references = verdict.references(model, own_samples)
    examples = write_examples(model, own_samples, folder)
    with gr.Blocks(title=f"hf-ebm: {model.name}", analytics_enabled=False, delete_cache=(600, 3000)) as page:
        gr.Markdown(WHAT.format(name=model.name, subject=model.subject))
        with gr.Tab("Draw"):
            draw_tab(model, references["energy"])
        with gr.Tab("Check"):
            check_tab(model, references, examples)
        if model.can_reconstruct:
            with gr.Tab("Rebuild"):
                rebuild_tab(model, examples)
            with gr.Tab("Blend"):
                blend_tab(model, examples)
        gr.Markdown(LIMITS)
    return page.queue(max_size=limits.MAX_WAITING, default_concurrency_limit=1, api_open=False)
