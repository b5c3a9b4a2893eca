"""``hf-ebm eval-ood``: how well a model's scores detect OOD images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_ebm.cli.options import CARD_REFRESHED, SCORE_NAMES, add_comparison_options, add_encoder_option
from hf_ebm.pipelines.loading import load_scorer
from hf_ebm.utils.files import check_writable, expand_home, path_option, path_text, whole_file

OOD_SETS = ("rotated", "inverted", "shuffled", "shuffled_patches", "blurred", "mixed", "constant", "noise")


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "eval-ood",
        help="evaluate out-of-distribution detection against simple baselines",
        description="Evaluate how well a model's scores detect out-of-distribution images, next to simple baselines.",
        epilog="example: hf-ebm eval-ood --model outputs/ddaebm-digits --id digits --ood noise,inverted,mixed",
    )
    add_comparison_options(parser)
    parser.add_argument(
        "--id",
        required=True,
        type=path_text,
        help="in-distribution data set: digits, or a Hub id or a folder, name[:config][@split]; statistics and "
        "baselines are fitted on its split train; the named one, default test, is scored",
    )
    parser.add_argument(
        "--ood",
        help=f"OOD sets, comma-separated: synthetic ones ({', '.join(OOD_SETS)}), or data sets as name[:config]"
        "[@split], split test or the only one where none is named; default: all synthetic ones",
    )
    parser.add_argument(
        "--scores",
        default="all",
        help=f"comma-separated, of {', '.join(SCORE_NAMES)}; default: %(default)s that the model allows",
    )
    add_encoder_option(parser, "which adds the scores encoder and density_encoder")
    parser.add_argument("--max-images", type=int, default=1000, help="maximum images per set (default: %(default)s)")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default: %(default)s)")
    parser.add_argument(
        "--metrics",
        default="auroc",
        help="metrics to print, comma-separated: auroc, aupr_out and aupr_in (OOD or in-distribution images "
        "positive), fpr95; ood.json has all (default: %(default)s)",
    )
    parser.add_argument("--no-baselines", action="store_true", help="evaluate the model's scores only")
    parser.add_argument(
        "--output",
        type=path_option,
        default=Path("ood"),
        help="folder for ood.json, roc.png and histograms.png; the card of a run folder is updated with it "
        "(default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print a table of each of ``--metrics``; write ``ood.json`` with all metrics and the protocol, and two plots."""
    import torch

    from hf_ebm import EBMImageProcessor
    from hf_ebm.data.loading import DatasetName
    from hf_ebm.evaluation import ood as evaluation
    from hf_ebm.evaluation.ood import METRICS
    from hf_ebm.evaluation.plots import plot_roc, plot_score_histograms
    from hf_ebm.evaluation.synthetic_ood import SYNTHETIC_OOD
    from hf_ebm.hub.model_card import public_name, refresh_card
    from hf_ebm.utils.files import to_json
    from hf_ebm.utils.logging import passing_bar
    from hf_ebm.utils.software import software_versions
    from hf_ebm.utils.torch_utils import find_device
    from hf_ebm.utils.validation import did_you_mean

    check_writable("--output", options.output, is_folder=True)
    shown = options.metrics.split(",")
    if strange := [name for name in shown if name not in METRICS]:
        near = did_you_mean(strange[0], METRICS, f"choose from {', '.join(METRICS)}.")
        raise ValueError(f"--metrics: there is no metric {strange[0]!r}; {near}")
    device = find_device(options.device)
    pipeline = load_scorer(options.model, load_reconstruction="auto", image_encoder=options.encoder).to(device)
    pipeline.set_progress_bar_config(disable=True)
    shape = pipeline.sample_shape
    if len(shape) != 3:
        raise ValueError(f"--model {options.model} scores vectors; eval-ood takes models of images.")

    scores = pipeline.available_scores if options.scores == "all" else options.scores.split(",")
    unknown = sorted(set(scores) - set(pipeline.available_scores))
    if unknown:
        raise ValueError(f"--scores: this model allows {pipeline.available_scores}, got {unknown}.")
    if options.resamples < 1:
        raise ValueError(f"--resamples must be >= 1, got {options.resamples}.")

    processor: Any = pipeline.image_processor or EBMImageProcessor.for_model(shape)
    loading = (options.image_column, options.max_images, options.seed, processor)
    (train, train_source), (test, test_source) = evaluation.load_train_and_test(options.id, shape, *loading)
    names = list(SYNTHETIC_OOD) if options.ood is None else [expand_home(name) for name in options.ood.split(",")]
    sets = {evaluation.IN_DISTRIBUTION: test}
    sources: dict[str, Any] = {}
    for name in names:
        if name in SYNTHETIC_OOD:
            sets[name] = SYNTHETIC_OOD[name](test, torch.Generator().manual_seed(options.seed))
            sources[name] = {"made_from": "the in-distribution images", "num_images": len(test)}
            continue
        if "/" not in name and not Path(name).exists() and (near := did_you_mean(name, SYNTHETIC_OOD, "")):
            raise ValueError(f"--ood: {name!r} is no synthetic OOD set; {near} A set of the Hub is written user/name.")
        column = DatasetName.parse(name).public
        if column in (*sets, "mean"):
            raise ValueError(f"--ood: {name} has the same name in the table as another column, {column!r}; rename it.")
        try:
            sets[column], sources[column] = evaluation.load_images(name, shape, "test", *loading)
        except ValueError as error:
            near = did_you_mean(name, SYNTHETIC_OOD, f"synthetic OOD sets are {', '.join(SYNTHETIC_OOD)}.")
            raise ValueError(f"--ood: {error} For --ood: {near}") from error

    bar = passing_bar()
    fitted = ({}, None) if options.no_baselines else evaluation.fit_baselines(train, options.seed, progress_bar=bar)
    baselines, autoencoder = fitted
    found = evaluation.score_sets(pipeline, scores, train, sets, options.seed, bar)
    for name, scorer in baselines.items():
        found[name] = {key: scorer(images) for key, images in sets.items()}
    paired = [name for name, source in sources.items() if "made_from" in source]
    table = evaluation.evaluate_ood(found, paired, options.resamples, options.seed, bar)
    protocol = {
        "descriptions": {name: SYNTHETIC_OOD[name].__doc__ for name in names if name in SYNTHETIC_OOD},
        "model": public_name(options.model),
        "in_distribution": test_source,
        "ood_sets": sources,
        "statistics_and_baselines": train_source,
        "preprocessing": processor.describe(),
        "scores": {"of_the_model": scores, "baselines": list(baselines)},
        "encoder": None if options.encoder is None else pipeline.find_encoder().describe(),
        "autoencoder": autoencoder,
        "metrics": METRICS,
        "intervals": f"95 %, percentile bootstrap over all sets, {options.resamples} resamples; images made from "
        "in-distribution images are resampled together with them",
        "seed": options.seed,
        "software": software_versions(),
    }
    record = to_json({"protocol": protocol, "metrics": table}, indent=2)
    with (  # all three or none
        whole_file(options.output / "ood.json") as record_file,
        whole_file(options.output / "roc.png") as roc,
        whole_file(options.output / "histograms.png") as histograms,
    ):
        record_file.write_text(record, encoding="utf-8")
        plot_roc(found, roc)
        plot_score_histograms(found, histograms)
    refreshed = refresh_card(options.output)
    tables = (evaluation.format_table(table, metric) for metric in shown)
    print(record if options.json else "\n\n".join(tables))
    if not options.json:
        if autoencoder and not autoencoder["converged"]:
            print(f"note: the autoencoder had not converged after {autoencoder['epochs']} epochs")
        print(f"wrote {options.output}/: ood.json (all metrics, 95 % intervals, protocol), roc.png, histograms.png")
        if refreshed:
            print(CARD_REFRESHED.format(options.output))
