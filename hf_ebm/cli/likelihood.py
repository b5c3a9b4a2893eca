"""``hf-ebm likelihood``: bracket log Z, and bound the log-likelihood of held-out data."""

from __future__ import annotations

import argparse
from typing import Any

from hf_ebm.cli.options import add_comparison_options
from hf_ebm.pipelines.loading import load_pipeline
from hf_ebm.utils.files import path_text

BASES = ("uniform", "diagonal", "full")
FEW_EFFECTIVE = 3.0  # effective samples, below which a bound is reported as unreliable
REVERSE_FROM = ("annealed", "generator", "data")


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "likelihood",
        help="bracket log Z; held-out likelihood in nats and bits per dimension",
        description="Bracket log Z of a model's energy, and with it the log-likelihood of held-out data, in nats\n"
        "and bits per dimension.",
        epilog="example: hf-ebm likelihood --model outputs/ddaebm-digits --dataset digits --num-chains 64 --json",
    )
    add_comparison_options(parser)
    parser.add_argument(
        "--dataset",
        required=True,
        type=path_text,
        help="digits, a 2-D set, or a Hub id or a folder, name[:config][@split]; of images, the "
        "split train fits the base and the named one, default test, is held out",
    )
    parser.add_argument(
        "--max-images", type=int, default=1000, help="maximum number of images of each split (default: %(default)s)"
    )
    parser.add_argument("--num-chains", type=int, default=128, help="chains in each direction (default: %(default)s)")
    parser.add_argument(
        "--num-temperatures",
        type=int,
        default=500,
        help="annealing temperatures from base to energy (default: %(default)s)",
    )
    parser.add_argument(
        "--num-leapfrog-steps", type=int, default=3, help="leapfrog steps of HMC; 1 = MALA (default: %(default)s)"
    )
    parser.add_argument(
        "--base",
        choices=BASES,
        default="uniform",
        help="distribution that annealing starts from (default: %(default)s)",
    )
    parser.add_argument(
        "--reverse-from",
        choices=REVERSE_FROM,
        default="annealed",
        help="source of the samples of the energy that the reverse chains start from (default: %(default)s)",
    )
    parser.add_argument(
        "--equilibration-steps", type=int, default=500, help="warm-up steps of those samples (default: %(default)s)"
    )
    parser.add_argument("--temperature", type=float, help="of exp(-E / T); default: the model's own")
    parser.add_argument(
        "--num-conditionals",
        type=int,
        default=0,
        help="held-out samples to bracket log Z of each denoising step for, of models that have such steps (default: "
        "%(default)s)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the bracket, the gap and the likelihood of held-out data; progress goes to stderr."""
    from hf_ebm.data.loading import DatasetName
    from hf_ebm.data.toy import TOY_NAMES
    from hf_ebm.hub.model_card import public_name
    from hf_ebm.likelihood.evaluate import check_has_chain, evaluate_chain_likelihood, evaluate_likelihood
    from hf_ebm.likelihood.log_partition import LikelihoodSettings
    from hf_ebm.utils.files import to_json
    from hf_ebm.utils.logging import passing_bar
    from hf_ebm.utils.torch_utils import find_device

    settings = LikelihoodSettings(
        num_chains=options.num_chains,
        num_temperatures=options.num_temperatures,
        num_leapfrog_steps=options.num_leapfrog_steps,
        base=options.base,
        reverse_from=options.reverse_from,
        equilibration_steps=options.equilibration_steps,
        temperature=options.temperature,
        seed=options.seed,
    )
    if options.num_conditionals < 0:
        raise ValueError(f"--num-conditionals must be >= 0, got {options.num_conditionals}.")
    device = find_device(options.device)
    pipeline = load_pipeline(options.model).to(device)
    if options.num_conditionals:
        try:
            check_has_chain(pipeline)
        except ValueError as error:
            raise ValueError(f"--num-conditionals: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    processor = pipeline.image_processor
    train, held_out = load_splits(options, pipeline.sample_shape, processor)
    name = DatasetName.parse(options.dataset)
    num_levels = None if name.name in TOY_NAMES else 17 if name.name == "digits" else 256
    bar = passing_bar(desc="annealing")
    record: dict[str, Any] = {"model": public_name(options.model), "dataset": name.public}
    record["preprocessing"] = "none" if processor is None else processor.describe()
    record |= evaluate_likelihood(pipeline, train, held_out, num_levels, settings, bar)
    if options.num_conditionals:
        followed = held_out[: options.num_conditionals]
        record["chain"] = evaluate_chain_likelihood(pipeline, train, followed, num_levels, settings, bar)
    print(to_json(record, indent=2) if options.json else format_record(record))


def load_splits(options: argparse.Namespace, sample_shape: tuple[int, ...], image_processor: Any) -> tuple[Any, Any]:
    """Load training and held-out samples; for the 2-D sets, two fresh sets of samples."""
    import torch

    from hf_ebm.data.toy import TOY_NAMES, sample_toy
    from hf_ebm.evaluation.ood import load_train_and_test

    if options.dataset in TOY_NAMES:
        if sample_shape != (2,):
            raise ValueError(f"--dataset {options.dataset} has 2-D points, but the model takes {sample_shape}.")
        seeds = (1_000 + 2 * options.seed, 1_001 + 2 * options.seed)
        first, second = (
            sample_toy(options.dataset, options.max_images, torch.Generator().manual_seed(seed)) for seed in seeds
        )
        return first, second
    (train, _), (held_out, _) = load_train_and_test(
        options.dataset, sample_shape, options.image_column, options.max_images, options.seed, image_processor
    )
    return train, held_out


def format_record(record: dict[str, Any]) -> str:
    """Format the main numbers."""
    log_z, nats = record["log_z"], record["log_likelihood"]
    lines = [
        f"density            {record['density']}, T = {record['temperature']:g}",
        f"log Z              at least {log_z['lower']:.2f}{show_interval(log_z.get('lower_interval'))}, at most about "
        f"{log_z['upper']:.2f}{show_interval(log_z.get('upper_interval'))}: gap {log_z['gap']:.2f} "
        f"(effective samples {log_z['effective_sample_size']:.1f} and {log_z['effective_sample_size_reverse']:.1f})",
        f"held-out, nats     at most {nats['at_log_z_lower']:.2f}, at least about {nats['at_log_z_upper']:.2f}",
    ]
    if "log_z_grid" in record:
        lines.append(f"log Z on a grid    {record['log_z_grid']:.4f}")
    for name, bits in record.get("bits_per_dim", {}).items():
        if isinstance(bits, dict):
            values = f"{bits['at_log_z_lower']:.3f} to {bits['at_log_z_upper']:.3f}"
            lines.append(f"bits/dim           {values} ({name} dequantisation)")
        else:
            lines.append(f"bits/dim           {bits:.3f} ({name}, to compare)")
    for step in record.get("chain", {}).get("steps", []):
        lines.append(
            f"log Z(x_next, {step['t']})   gap {step['mean_gap']:.2f}, effective samples "
            f"{step['mean_effective_sample_size']:.1f}, means over {record['chain']['num_held_out']} samples"
        )
    if record.get("chain", {}).get("bits_per_dim"):
        bits = record["chain"]["bits_per_dim"]
        lines.append(f"bits/dim, chain    {bits['at_log_z_lower']:.3f} to {bits['at_log_z_upper']:.3f}")
    if log_z["gap"] < 0:
        lines.append(
            "NO BRACKET: the upper end lies below the lower, so that the reverse chains did not start in the model"
        )
    few = min(log_z["effective_sample_size"], log_z["effective_sample_size_reverse"])
    if few < FEW_EFFECTIVE:
        lines.append(f"{few:.1f} effective samples are too few: more chains or temperatures (--num-chains, ...) help")
    if log_z.get("num_reverse_starts") == 1:
        lines.append("all reverse chains started from copies of one sample, so the upper end has no interval")
    lines.append(
        "both ends are stochastic bounds: the lower one exceeds log Z by c nats with probability exp(-c) at most, the "
        "upper one starts from approximate samples and may err to either side; in brackets 95 % bootstrap intervals "
        "over the chains, by distinct start, which are the sampling error of each end and no interval for log Z"
    )
    return "\n".join(lines)


def show_interval(interval: list[float] | None) -> str:
    """Format an interval with two decimals; empty for None."""
    return "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
