"""The functions behind the demo's tabs: what they compute, and what they refuse."""

import asyncio
import math
import os
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import PIL.Image
import pytest
import torch

from hf_ebm import EnergyScoringPipeline
from hf_ebm.cli import main
from hf_ebm.data import load_digits
from hf_ebm.scoring.calibration import Calibration
from hf_ebm.scoring.energy import compute_energies
from hf_ebm.space import limits, pictures, uploads
from hf_ebm.space.demo_models import DemoModel, find_subject, load_demo_model
from hf_ebm.space.examples import write_examples
from hf_ebm.space.generation import CHAIN_SAMPLERS, draw
from hf_ebm.space.reconstruction import blend, rebuild
from hf_ebm.space.server import BodyLimit, FolderLimit
from hf_ebm.space.uploads import read_upload
from hf_ebm.space.verdict import available_scores, judge, references


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def without_progress(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def ddaebm(tiny_pipeline):
    scorer = EnergyScoringPipeline(tiny_pipeline.energy_model, tiny_pipeline.scheduler)
    return DemoModel("tiny", tiny_pipeline, without_progress(scorer))


@pytest.fixture
def dual(tiny_dual_mcmc_pipeline):
    scorer = EnergyScoringPipeline(**tiny_dual_mcmc_pipeline.components)
    return DemoModel("tiny", tiny_dual_mcmc_pipeline, without_progress(scorer))


def save_png(path, pixels, **options):
    PIL.Image.fromarray(pixels).save(path, format="png", **options)
    return str(path)


def test_a_model_is_loaded_once_with_its_calibration(tiny_dual_mcmc_pipeline, tmp_path):
    tiny_dual_mcmc_pipeline.save_pretrained(tmp_path / "m")
    scorer = without_progress(EnergyScoringPipeline(**tiny_dual_mcmc_pipeline.components))
    scorer.calibrate(load_digits("test")[0][:40]).save(tmp_path / "m")
    model = load_demo_model(str(tmp_path / "m"))
    assert model.name == "m" and model.is_dual_mcmc and model.can_reconstruct
    assert model.scorer.energy_model is model.pipeline.energy_model
    assert model.scorer.calibration.num_samples == 40
    assert "combined" in available_scores(model)


def test_a_model_without_an_energy_is_refused(tiny_pipeline, tmp_path):
    tiny_pipeline.energy_model = None
    tiny_pipeline.register_modules(energy_model=None)
    tiny_pipeline.save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="no energy model"):
        load_demo_model(str(tmp_path / "m"))


def test_an_upload_of_the_models_size_is_taken_pixel_for_pixel(tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    given = read_upload(save_png(tmp_path / "a.png", pixels), (1, 8, 8))
    assert torch.equal(given.x[0, 0], torch.from_numpy(pixels).float() / 127.5 - 1.0)
    assert given.changes == ""


def test_an_upload_is_padded_as_in_training(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "m")
    assert load_demo_model(str(tmp_path / "m")).padding == 0
    (tmp_path / "m" / "settings.yaml").write_text("padding: 2\n")
    model = load_demo_model(str(tmp_path / "m"))
    path = save_png(tmp_path / "a.png", np.full((4, 4), 255, dtype=np.uint8))
    given = read_upload(path, model.sample_shape, padding=model.padding)
    expected = torch.full((8, 8), -1.0)
    expected[2:6, 2:6] = 1.0
    assert torch.equal(given.x[0, 0], expected) and given.changes == "padded by 2 black pixels on each side"


def test_a_photograph_is_turned_upright_cropped_and_resized(tmp_path):
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:20] = 255  # white above; the camera was held so that this is the right side
    exif = PIL.Image.Exif()
    exif[274] = 6
    given = read_upload(save_png(tmp_path / "a.png", pixels, exif=exif), (1, 8, 8))
    assert given.x[0, 0, :, 5:].min() > 0.9 and given.x[0, 0, :, :3].max() < -0.9
    assert given.changes == "cropped to a square, resized from 40 x 60 to 8 x 8 pixels, turned to gray"


def test_what_is_transparent_is_said(tmp_path):
    clear = save_png(tmp_path / "a.png", np.zeros((8, 8, 4), dtype=np.uint8))
    assert read_upload(clear, (3, 8, 8)).changes == "laid on white where it is transparent"
    given = read_upload(clear, (1, 8, 8))
    assert given.changes == "turned to gray, laid on white where it is transparent" and given.x.min() == 1.0


def broken_files(folder):
    """Name -> (file, what the message must say)."""
    whole = save_png(folder / "whole.png", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    with open(whole, "rb") as file:
        data = file.read()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    PIL.Image.new("L", (8, 8)).save(folder / "other.png", format="tiff")  # a kind that is not on the list
    with open(folder / "long.png", "wb") as file:
        file.truncate(limits.MAX_UPLOAD_BYTES + 1)
    PIL.Image.new("1", (8000, 7000)).save(folder / "bomb.png")
    said = {"cut": "broken", "text": "broken", "empty": "broken", "other": "broken"}
    said |= {"long": "10 MB are allowed", "bomb": "8000 x 7000 pixels"}
    return {name: (str(folder / f"{name}.png"), words) for name, words in said.items()}


@pytest.mark.parametrize("name", ["cut", "text", "empty", "other", "long", "bomb"])
def test_a_file_that_cannot_be_taken_is_named_plainly(tmp_path, name):
    path, words = broken_files(tmp_path)[name]
    with pytest.raises(ValueError, match=words) as error:
        read_upload(path, (1, 8, 8))
    assert str(tmp_path) not in str(error.value)


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch):
    def decoded(*_):
        raise AssertionError("decoded")

    path, _ = broken_files(tmp_path)["bomb"]
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", decoded)
    with pytest.raises(ValueError, match="pixels"):
        read_upload(path, (1, 8, 8))
    monkeypatch.setattr(uploads, "MAX_UPLOAD_PIXELS", 10**9)
    with pytest.raises(AssertionError, match="decoded"):
        read_upload(path, (1, 8, 8))


def test_no_file_asks_for_one():
    with pytest.raises(ValueError, match="Choose a picture first"):
        read_upload(None, (1, 8, 8))


def test_denoising_is_the_pipelines_own(ddaebm):
    drawn = draw(ddaebm, 5, "DDAEBM (its own)", 4, 7)
    expected = ddaebm.pipeline(5, generator=seeded(7), output_type="pt").images
    assert torch.equal(drawn.images, expected)
    assert drawn.states.shape == (4, 3, 1, 8, 8) and drawn.energies.shape == (4, 5)
    assert torch.equal(drawn.states[-1].clamp(-1, 1), expected[:3])
    for states, energies in zip(drawn.states, drawn.energies, strict=True):
        torch.testing.assert_close(energies[:3], compute_energies(ddaebm.pipeline.energy_model, states))
    assert drawn.point_names == ["step 1", "step 2", "step 3", "step 4"]


def test_stock_schedulers_take_fewer_steps_and_leave_the_model_alone(ddaebm):
    before = ddaebm.pipeline.scheduler
    assert draw(ddaebm, 2, "DDIM", 2, 0).energies.shape == (2, 2)
    assert ddaebm.pipeline.scheduler is before


@pytest.mark.parametrize("sampler", CHAIN_SAMPLERS)
def test_the_chain_is_the_pipelines_own(dual, sampler):
    drawn = draw(dual, 4, sampler, 3, 5)
    pipeline = dual.pipeline
    pipeline.scheduler = CHAIN_SAMPLERS[sampler].from_config(pipeline.scheduler.config)
    expected = pipeline(4, 3, generator=seeded(5), output_type="pt", output_energies=True)
    torch.testing.assert_close(drawn.images, expected.images)
    torch.testing.assert_close(drawn.energies, expected.energies)
    torch.testing.assert_close(drawn.states[-1].clamp(-1, 1), expected.images[:3])
    torch.testing.assert_close(drawn.energies[:, :3], compute_energies_of(pipeline, drawn.states))
    assert drawn.point_names == ["start", "step 1", "step 2", "step 3"]
    assert (drawn.acceptance_rate is not None) == (sampler in ("MALA", "HMC", "Replica exchange"))


def compute_energies_of(pipeline, states):
    return torch.stack([compute_energies(pipeline.energy_model, x) for x in states])


def test_no_steps_show_the_generator_alone(dual):
    drawn = draw(dual, 2, "Langevin (its own)", 0, 0)
    assert drawn.energies.shape == (1, 2) and drawn.point_names == ["start"]
    assert pictures.filmstrip(drawn).width == round(pictures.WIDTH * pictures.DPI)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((limits.MAX_IMAGES + 1, "MALA", 3, 0), "number of pictures"),
        ((0, "MALA", 3, 0), "number of pictures"),
        ((2.5, "MALA", 3, 0), "number of pictures"),
        ((True, "MALA", 3, 0), "number of pictures"),
        (("3", "MALA", 3, 0), "number of pictures"),
        ((2, "MALA", limits.MAX_CHAIN_STEPS + 1, 0), "number of steps"),
        ((2, "MALA", math.nan, 0), "number of steps"),
        ((2, "MALA", 3, -1), "seed"),
        ((2, "MALA", 3, None), "seed"),
        ((2, "no such", 3, 0), "sampler"),
        ((2, ["MALA"], 3, 0), "sampler"),
    ],
)
def test_the_server_bounds_what_the_page_sends(dual, values, named):
    with pytest.raises(ValueError, match=named):
        draw(dual, *values)


def test_verdict_counts_ordinary_pictures_at_least_as_odd(ddaebm):
    held_out = load_digits("test")[0][:40]
    ddaebm.scorer.calibrate(held_out, target_fpr=0.1)
    energies = ddaebm.pipeline.score(held_out).energies
    order = energies.argsort(descending=True)
    scores = torch.tensor(ddaebm.scorer.calibration.reference["energy"])
    for rank in (0, 1, 2, 3, 4, 20):
        found = judge(ddaebm, held_out[order[rank]][None], "energy")
        count = int((scores >= found.score).sum())
        assert abs(count - rank - 1) <= 1  # scored alone, its own energy may differ in the last digit
        assert found.p_value == pytest.approx((1 + count) / 41)
        assert found.is_ood == (1 + count <= 4)  # a tenth of 41
        share = f"{count} ({count / 40:.1%})" if count else "none"
        assert f"At least as odd as this one, of 40 ordinary pictures: **{share}**" in found.text
        assert ("Odd:" in found.text) == found.is_ood != ("Ordinary:" in found.text)
    reference = references(ddaebm, held_out)["energy"]
    assert reference.threshold == pytest.approx(energies[order[3]].item())
    far = float(energies.max()) + 1e6
    assert pictures.score_histogram(reference, far, "energy").width == round(pictures.WIDTH * pictures.DPI)


def test_without_a_calibration_there_is_no_verdict(ddaebm):
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    found = judge(ddaebm, x[:1], "energy")
    assert found.is_ood is None and found.p_value is None and "not calibrated" in found.text
    reference = references(ddaebm, x)["energy"]
    assert reference.threshold is None and "drew itself" in reference.name
    assert torch.equal(reference.scores, ddaebm.pipeline.score(x).energies.double().sort().values)
    with pytest.raises(ValueError, match="score"):
        judge(ddaebm, x[:1], "multiscale")


def test_scores_that_the_calibration_lacks_are_not_offered(dual):
    dual.scorer.calibrate(load_digits("test")[0][:40])
    full = dual.scorer.calibration
    dual.scorer.calibration = Calibration(
        full.target_fpr, full.num_samples, full.seed, full.statistics, {"energy": full.reference["energy"]}
    )
    assert available_scores(dual) == ["energy"]


def test_rebuilding_tells_the_errors_of_what_it_shows(dual):
    x = torch.rand(1, 1, 8, 8) * 2 - 1
    rebuilt = rebuild(dual, x, 6, 3)
    assert rebuilt.errors.shape == (7,)
    torch.testing.assert_close(rebuilt.errors[0], (rebuilt.inferred - x).square().mean())
    torch.testing.assert_close(rebuilt.errors[-1], (rebuilt.revised - x).square().mean())
    assert not torch.equal(rebuilt.inferred, rebuilt.revised)
    pictures.reconstruction_picture(rebuilt)


def test_blends_go_from_one_end_to_the_other(dual, tmp_path):
    frames, energies = blend(dual, None, 4, None, 5, 3)
    for index, seed in ((0, 4), (-1, 5)):
        expected = dual.pipeline(1, 0, generator=seeded(seed), output_type="pt").images
        torch.testing.assert_close(frames[index][None], expected)
    torch.testing.assert_close(energies, dual.pipeline.score(frames).energies)
    path = save_png(tmp_path / "a.png", np.full((8, 8), 90, dtype=np.uint8))
    from_picture, _ = blend(dual, path, 4, None, 5, 3)
    torch.testing.assert_close(from_picture[-1], frames[-1])
    assert not torch.allclose(from_picture[0], frames[0])
    with pytest.raises(ValueError, match="second seed"):
        blend(dual, path, 4, None, None, 3)
    with pytest.raises(ValueError, match="frames"):
        blend(dual, path, 4, None, 5, limits.MAX_FRAMES + 1)


def test_examples_come_back_as_they_were_made(ddaebm, tmp_path):
    own = ddaebm.pipeline(5, generator=seeded(0), output_type="pt").images
    paths = write_examples(ddaebm, own, tmp_path)
    likeliest = own[ddaebm.pipeline.score(own).energies.argmin()]
    given = [read_upload(path, (1, 8, 8)) for path in paths]
    assert len(paths) == 6 and {one.changes for one in given} == {""}
    torch.testing.assert_close(given[0].x[0], likeliest, atol=1 / 127, rtol=0)
    torch.testing.assert_close(given[3].x[0], -likeliest, atol=1 / 127, rtol=0)


@pytest.mark.parametrize(("number", "expected"), [(1, [0]), (4, [0, 1, 2, 3]), (11, [0, 2, 4, 6, 8, 10])])
def test_the_strip_shows_both_ends(number, expected):
    assert pictures.shown_points(number) == expected


def test_links_are_not_followed(tmp_path):
    import gradio as gr

    from hf_ebm.space.upload_field import make_upload_field

    with gr.Blocks():
        field = make_upload_field("a")
    for link in ("http://127.0.0.1:9/a.png", "data:image/png;base64,AAAA", str(tmp_path / "none.png")):
        with pytest.raises(gr.Error, match="links are not followed"):
            asyncio.run(field.async_move_resource_to_block_cache(link))


@pytest.mark.parametrize(
    ("announced", "parts", "status"),
    [(11, [b""], 413), (None, [b"123456", b"78901"], 500), (None, [b"1234567890"], 200)],
)
def test_bodies_are_bounded_announced_or_not(announced, parts, status):
    async def app(scope, receive, send):
        more, code = True, 200
        while more:
            message = await receive()
            more, code = message.get("more_body", False), 500 if message["type"] == "http.disconnect" else 200
        await send({"type": "http.response.start", "status": code})

    async def call():
        messages = [
            {"type": "http.request", "body": part, "more_body": index + 1 < len(parts)}
            for index, part in enumerate(parts)
        ]
        sent = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        headers = [] if announced is None else [(b"content-length", str(announced).encode())]
        await BodyLimit(app, 10)({"type": "http", "headers": headers}, receive, send)
        return sent[0]["status"]

    assert asyncio.run(call()) == status


def test_uploads_stop_while_the_folder_is_full_and_old_files_go(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ebm.space.server.MAX_FILES", 2)
    own, old = tmp_path / "example.png", tmp_path / "old.png"
    for path in (own, old):
        path.touch()
        os.utime(path, (0, 0))

    async def app(scope, receive, send):
        await send({"status": 200})

    async def call(path="/gradio_api/upload"):
        sent = []

        async def send(message):
            sent.append(message)

        await FolderLimit(app, tmp_path, [own])({"type": "http", "path": path}, None, send)
        return sent[0]["status"]

    (tmp_path / "first.png").touch()
    assert asyncio.run(call()) == 200
    assert own.exists() and not old.exists()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "second.png").touch()
    assert asyncio.run(call()) == 503 and asyncio.run(call("/other")) == 200
    os.utime(tmp_path / "first.png", (0, 0))
    assert asyncio.run(call()) == 200
    monkeypatch.setattr("hf_ebm.space.server.MAX_TOTAL_BYTES", limits.MAX_UPLOAD_BYTES - 1)
    assert asyncio.run(call()) == 503


@pytest.mark.parametrize(
    ("name", "tabs"), [("ddaebm", ["Draw", "Check"]), ("dual", ["Draw", "Check", "Rebuild", "Blend"])]
)
def test_the_page_has_the_tabs_that_the_model_allows(name, tabs, tmp_path, request):
    from hf_ebm.space.app import build_page

    page = build_page(request.getfixturevalue(name), tmp_path)
    config = page.get_config_file()
    assert [one["props"]["label"] for one in config["components"] if one["type"] == "tabitem"] == tabs
    heavy = [one for one in page.fns.values() if one.queue]
    assert {(one.concurrency_id, one.concurrency_limit) for one in heavy} == {("model", 1)}
    assert len(heavy) == len(tabs) + 1  # "Draw others", too


def test_hf_ebm_demo_serves_this_machine_alone_unless_told(monkeypatch):
    calls = []
    monkeypatch.setattr("hf_ebm.space.server.serve", lambda *values: calls.append(values))
    main(["demo", "--model", "a"])
    main(["demo", "--model", "a", "--host", "0.0.0.0", "--port", "80", "--share"])
    assert calls == [("a", "127.0.0.1", 7860, False), ("a", "0.0.0.0", 80, True)]


def test_a_busy_port_is_told_before_the_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr("hf_ebm.space.demo_models.load_demo_model", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as end:
            main(["demo", "--model", "a", "--port", port])
    printed = capsys.readouterr().err
    assert end.value.code == 2 and printed.startswith(f"hf-ebm: error: --port {port} of 127.0.0.1")
    assert "choose another --port" in printed and "GRADIO" not in printed
    with pytest.raises(SystemExit):
        main(["demo", "--model", "a", "--port", "70000"])
    assert "--port 70000" in capsys.readouterr().err


def test_the_demo_prints_its_address_alone(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hf_ebm.cli", "demo", "--model", str(tmp_path / "model"), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/").status
        process.terminate()
        rest = process.stdout.read()
    assert page == 200 and first == f"the demo is at http://127.0.0.1:{port}/ until Ctrl-C\n" and rest == ""
    assert process.returncode == 0


def test_without_gradio_the_demo_says_what_to_install(monkeypatch):
    from hf_ebm.space.server import serve

    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # put back afterwards
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "hf_ebm.space.app", raising=False)
    monkeypatch.delattr("hf_ebm.space.app", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'hf-ebm\[demo\]'"):
        serve("none")


def test_the_page_says_what_the_model_learned_from(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    assert find_subject(tmp_path) == "many pictures"
    (tmp_path / "train_summary.json").write_text('{"num_images": 1437}')
    for dataset, said in (
        ("digits", "1,437 small handwritten digits, light on black (`digits`)"),
        (str(tmp_path), f"1,437 pictures of the data set (`{tmp_path.name}`)"),
    ):
        (tmp_path / "settings.yaml").write_text(f"dataset: {dataset}\n")
        assert find_subject(tmp_path) == said
