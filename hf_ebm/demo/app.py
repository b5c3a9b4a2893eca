"""The Gradio page, with one tab per task, for readers without knowledge of energy-based models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from hf_ebm.demo import figures, generation, limits, reconstruction, verdict
from hf_ebm.demo.demo_models import DemoModel
from hf_ebm.demo.examples import to_pil, write_examples
from hf_ebm.demo.upload_field import make_upload_field
from hf_ebm.demo.uploads import read_upload
from hf_ebm.scoring.scores import SCORE_WORDS

THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # nothing fetched
CSS = """
.gradio-container { max-width: 1100px !important; width: 100%; margin: 0 auto; }
.prose { overflow-wrap: anywhere; }
.small-image img, .samples img, .gallery img { image-rendering: pixelated; }
.small-image img, .samples img { width: 100% !important; height: 100% !important; object-fit: contain !important; }
.small-image img { border: 1px solid var(--neutral-400); background: white; }
.answer:not(:has(.md > *)) { display: none; }
input[role=combobox] { padding-right: var(--size-7) !important; text-overflow: ellipsis; }
.samples .grid-wrap { min-height: 0 !important; max-height: none !important; }
.samples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; grid-auto-rows: auto; }
.samples .gallery-item, .samples .thumbnail-lg { aspect-ratio: 1 / 1; height: auto !important; min-height: 0; }
.figure img { width: 100%; }
"""
WORDS = gr.I18n(en={"common.complete": "Done"})  # read by screen readers after a run; missing in Gradio 6.31
WHAT = """# {name}

This model was trained on {subject}. It gives every image a number, the **energy**: low for images that look like the
training data, high for images that do not. It can also generate new images.
"""
LIMITS = f"""The energy is not a probability, depends only on the data the model was trained on, and can be fooled.
Images can be PNG, JPEG, WebP, GIF or BMP files of up to {limits.MAX_UPLOAD_BYTES // 2**20} MB. Uploads are used only
for your result and deleted within an hour."""
CHECK = """Upload an image: does it look like the training data? It is cropped to a square, resized to {size} x {size}
pixels, and its score is compared with the scores of other images."""
RECONSTRUCT = """The model encodes your image as {latents} numbers and reconstructs it from them: first directly,
then after small steps with a little noise, which usually improve it. Images unlike the training data
are reconstructed poorly."""
INTERPOLATE = """Interpolate between two images through images that the model generates in between. Both ends
come from the model as well: reconstructions of your images, or samples from a seed where you upload none."""
ALL_CLASSES = "all, as often as in the training data"
EXAMPLES = "Examples: three samples of the model, one inverted, one shuffled, noise"


def with_page_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `function` so that its `ValueError` is shown on the page."""

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
    """Run `function` after an event; all such calls share one queue, which runs one at a time.

    If it fails, its outputs are emptied, so that no earlier result is shown beside new inputs.
    """
    called = event(
        with_page_errors(function),
        inputs,
        outputs,
        concurrency_limit=1,
        concurrency_id="model",
        api_visibility="private",
    )
    nothing = None if len(outputs) == 1 else [None] * len(outputs)  # Gradio takes a list for one output's value
    called.failure(lambda: nothing, None, outputs, api_visibility="private", queue=False)
    return called


def empty_on_change(field: Any, outputs: list[Any]) -> None:
    """Empty the outputs when `field` changes, since they belong to its earlier value."""
    field.change(lambda: [None] * len(outputs), None, outputs, api_visibility="private", queue=False)


def make_figure(label: str) -> gr.Image:
    """Create the field of a figure, under its heading."""
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
    """Create the slider for the number of steps of a chain."""
    return gr.Slider(0, limits.MAX_CHAIN_STEPS, min(value, limits.MAX_CHAIN_STEPS), step=1, label="Steps")


def about_steps(low: int, high: int) -> str:
    """Describe the range of a sampler's steps."""
    return "fewer steps are faster" if low < high else f"this sampler always takes {high}"


def generate_tab(model: DemoModel, reference: verdict.Reference) -> None:
    """Build the tab of generation, with its filmstrip and energy curve."""
    gr.Markdown(model.pipeline.sampling_text)
    samplers = list(generation.samplers_of(model))
    low, default, high = generation.step_limits(model, samplers[0])
    with gr.Row():
        with gr.Column(scale=2):
            number = gr.Slider(1, limits.MAX_IMAGES, 8, step=1, label="Images")
            classes = [(ALL_CLASSES, None), *((name, name) for name in model.pipeline.class_names)]
            class_name = gr.Dropdown(classes, value=None, label="Class", visible=len(classes) > 1)
            sampler = gr.Dropdown(samplers, value=samplers[0], label="Sampler", info="the sampling algorithm")
            smallest = min(generation.step_limits(model, name)[0] for name in samplers)
            steps = gr.Slider(
                smallest, high, default, step=1, label="Steps", interactive=low < high, info=about_steps(low, high)
            )
            seed = gr.Number(0, label="Seed", info="the same seed gives the same images")
            button = gr.Button("Generate", variant="primary")
            others = gr.Button("Generate others")
        with gr.Column(scale=3):
            gr.Markdown("#### New images")
            images = gr.Gallery(
                label="New images", show_label=False, columns=4, format="png", elem_classes="samples", height="auto"
            )
            figure = make_figure("Intermediate samples and their energy")
            summary = gr.Markdown()

    def generate(number: Any, class_name: Any, sampler: Any, steps: Any, seed: Any) -> tuple[Any, Any, str]:
        generated = generation.generate(model, number, sampler, steps, seed, class_name)
        first, last = (float(generated.energies[point].mean()) for point in (0, -1))
        text = f"Mean energy: **{last:#.4g}**."
        if len(generated.energies) > 1:
            text = f"Mean energy: {first:#.4g} at the beginning of the curve, **{last:#.4g}** at its end."
        if reference.threshold is not None:
            flagged, mean = int((generated.energies[-1] > reference.threshold).sum()), float(reference.scores.mean())
            text += (
                f" {reference.name.capitalize()}: {mean:#.4g}. The check would flag {flagged} of the "
                f"{generated.energies.shape[1]} as out-of-distribution."
            )
            if flagged > 0:
                text += " Samples of a model often have higher energies than real images."
        if generated.acceptance_rate is not None:
            text += (
                f" This sampler proposes steps and accepts some of them: here {generated.acceptance_rate:.0%}. "
                "If it accepts few, the images hardly change."
            )
        return to_pil(generated.images), figures.filmstrip(generated, reference), text

    def fit_steps(sampler: Any) -> Any:
        low, default, high = generation.step_limits(model, sampler)
        return gr.update(value=default, interactive=low < high, info=about_steps(low, high))

    inputs, outputs = [number, class_name, sampler, steps, seed], [images, figure, summary]
    sampler.change(with_page_errors(fit_steps), sampler, steps, api_visibility="private", queue=False)
    on_click(button, generate, inputs, outputs)
    next_seed = others.click(
        lambda seed: (int(seed or 0) + 1) % (limits.MAX_SEED + 1), seed, seed, api_visibility="private", queue=False
    )
    queue_after(next_seed.then, generate, inputs, outputs)


def check_tab(model: DemoModel, references: dict[str, verdict.Reference], examples: list[str]) -> None:
    """Build the tab that compares an image with the training data."""
    gr.Markdown(CHECK.format(size=model.sample_shape[-1]))
    scores = [(f"{name.replace('_', ' ')}: {SCORE_WORDS[name]}", name) for name in verdict.available_scores(model)]
    with gr.Row():
        with gr.Column(scale=2):
            upload = make_upload_field("Your image", height=240)
            gr.Examples([[path] for path in examples], upload, label=EXAMPLES)
            score = gr.Dropdown(scores, value=model.scorer.default_score, label="Score", info="what is compared")
            button = gr.Button("Check this image", variant="primary")
        with gr.Column(scale=3):
            text = gr.Markdown(elem_classes="answer")
            figure = make_figure("Its score among those of other images")
            heat = [make_figure("Its unusual pixels")] if model.scorer.calibrated_maps else []
            gr.Markdown("#### What the model sees")
            seen = gr.Image(
                label="What the model sees",
                show_label=False,
                format="png",
                interactive=False,
                height=160,
                buttons=[],
                elem_classes="small-image",
            )
            note = gr.Markdown()

    def check(path: str | None, score: Any) -> tuple[Any, ...]:
        given = read_upload(path, model.pipeline.image_processor)
        found, text = verdict.judge(model, given.x, score)
        figure = figures.score_histogram(references[score], float(found.scores[0]), score)
        note = f"To fit the model, your image was {given.changes}." if given.changes else ""
        maps = [] if found.maps is None else [figures.heat_map(given.x[0], found.maps[0])]
        return text, figure, to_pil(given.x)[0], note, *maps

    answer = [text, figure, seen, note, *heat]
    on_click(button, check, [upload, score], answer)
    for field in (upload, score):
        empty_on_change(field, answer)


def reconstruct_tab(model: DemoModel, examples: list[str]) -> None:
    """Build the tab of reconstruction by the inference model and the z-chain."""
    gr.Markdown(RECONSTRUCT.format(latents=model.pipeline.generator_model.config.latent_dim))
    with gr.Row():
        with gr.Column(scale=2):
            upload = make_upload_field("Your image", height=240)
            gr.Examples([[path] for path in examples], upload, label=EXAMPLES)
            steps = make_chain_steps(10)
            seed = gr.Number(0, label="Seed")
            button = gr.Button("Reconstruct", variant="primary")
        with gr.Column(scale=3):
            figure = make_figure("Reconstructions, and the error at each step")
            note = gr.Markdown()

    def reconstruct(path: str | None, steps: Any, seed: Any) -> tuple[Any, str]:
        given = read_upload(path, model.pipeline.image_processor)
        found = reconstruction.reconstruct(model, given.x, steps, seed)
        note = "The error is the mean squared difference per pixel, on a scale where black is -1 and white 1."
        if given.changes:
            note += f" To fit the model, your image was {given.changes}."
        return figures.reconstruction_figure(found), note

    on_click(button, reconstruct, [upload, steps, seed], [figure, note])
    empty_on_change(upload, [figure, note])


def interpolate_tab(model: DemoModel, examples: list[str]) -> None:
    """Build the tab of interpolation between two images or seeds."""
    gr.Markdown(INTERPOLATE)
    ends: list[Any] = []
    with gr.Row():
        for seed, which in enumerate(("First", "Second")):
            with gr.Column():
                upload = make_upload_field(f"{which} image (or none)", height=220)
                gr.Examples([[path] for path in examples], upload, label="Examples")
                ends += [upload, gr.Number(seed, label=f"{which} seed, if there is no image")]
    frames = gr.Slider(2, limits.MAX_FRAMES, 6, step=1, label="Frames")
    button = gr.Button("Interpolate", variant="primary")
    figure = make_figure("Interpolation, and its energy")

    def interpolate(*values: Any) -> Any:
        return figures.interpolation_figure(*reconstruction.interpolate(model, *values))

    on_click(button, interpolate, [*ends, frames], [figure])


def build_page(model: DemoModel, folder: Path) -> gr.Blocks:
    """Build the page for `model`; example files are written into the existing `folder`."""
    own_samples = model.pipeline(
        verdict.NUM_OWN_SAMPLES, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).images.cpu()
    references = verdict.references(model, own_samples)
    examples = write_examples(model, own_samples, folder)
    with gr.Blocks(title=f"hf-ebm: {model.name}", analytics_enabled=False, delete_cache=(600, 3000)) as page:
        gr.Markdown(WHAT.format(name=model.name, subject=model.subject))
        with gr.Tabs(overflow_behavior="wrap"):  # the default hides the last tabs in a menu on a phone
            with gr.Tab("Generate"):
                generate_tab(model, references["energy"])
            with gr.Tab("Check"):
                check_tab(model, references, examples)
            if "reconstruct" in model.pipeline.tasks:
                with gr.Tab("Reconstruct"):
                    reconstruct_tab(model, examples)
            if "interpolate" in model.pipeline.tasks:
                with gr.Tab("Interpolate"):
                    interpolate_tab(model, examples)
        gr.Markdown(LIMITS)
    return page.queue(max_size=limits.MAX_WAITING, default_concurrency_limit=1, api_open=False)
