"""The model of the page: loaded once, with its calibration and training data."""

import pytest

from hf_ebm.data.digits import load_digits
from hf_ebm.demo.demo_models import find_subject, load_demo_model
from hf_ebm.demo.verdict import available_scores


def test_a_model_is_loaded_once_with_its_calibration(dual, tmp_path):
    dual.pipeline.save_pretrained(tmp_path / "m")
    dual.scorer.calibrate(load_digits("test")[0][:40]).save(tmp_path / "m")
    model = load_demo_model(str(tmp_path / "m"))
    assert model.name == "m" and "reconstruct" in model.pipeline.tasks
    assert model.scorer.energy_model is model.pipeline.energy_model
    assert model.scorer.calibration.num_samples == 40
    assert "combined" in available_scores(model)


def test_a_model_without_an_energy_is_refused(tiny_pipeline, tmp_path):
    tiny_pipeline.energy_model = None
    tiny_pipeline.register_modules(energy_model=None)
    tiny_pipeline.save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="has no energy_model"):
        load_demo_model(str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("name", "tabs"), [("ddaebm", ["Generate", "Check"]), ("dual", ["Generate", "Check", "Reconstruct", "Interpolate"])]
)
def test_the_page_has_the_tabs_that_the_model_allows(name, tabs, tmp_path, request):
    from hf_ebm.demo.app import build_page

    page = build_page(request.getfixturevalue(name), tmp_path)
    config = page.get_config_file()
    assert [one["props"]["label"] for one in config["components"] if one["type"] == "tabitem"] == tabs
    heavy = [one for one in page.fns.values() if one.queue]
    assert {(one.concurrency_id, one.concurrency_limit) for one in heavy} == {("model", 1)}
    assert len(heavy) == len(tabs) + 1  # "Generate others", too


@pytest.mark.parametrize("name", ["ddaebm", "dual"])
def test_a_failure_empties_all_outputs(name, tmp_path, request):
    """Gradio takes a list for the value of a single output."""
    from hf_ebm.demo.app import build_page

    page = build_page(request.getfixturevalue(name), tmp_path)
    numbers = [len(one.outputs) for one in page.fns.values() if one.queue]
    emptying = [one for one in page.fns.values() if one.trigger_only_on_failure]
    assert [len(one.outputs) for one in emptying] == numbers
    for one in emptying:
        assert one.fn() == (None if len(one.outputs) == 1 else [None] * len(one.outputs))


def test_the_page_names_the_training_data(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    assert find_subject(tmp_path) == "many images"
    (tmp_path / "train_summary.json").write_text('{"num_images": 1437}')
    for dataset, said in (
        ("digits", "1,437 small handwritten digits, light on black (`digits`)"),
        (str(tmp_path), f"1,437 images of the data set (`{tmp_path.name}`)"),
    ):
        (tmp_path / "settings.yaml").write_text(f"dataset: {dataset}\n")
        assert find_subject(tmp_path) == said
