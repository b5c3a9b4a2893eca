"""Help: the commands, the help of each, and the message for an unknown name."""

import re
import shlex

import pytest

import hf_ebm
from hf_ebm.cli.main import COMMANDS, main, make_parser


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["trian", "--help"], 2, "argument COMMAND: invalid choice: 'trian' (choose from "),
        (["zzz"], 2, "invalid choice: 'zzz'"),
        (["--debug", "zzz"], 2, "invalid choice: 'zzz'"),
        (["sample", "--model", "x", "--num-imagse", "4"], 2, "unrecognized arguments: --num-imagse 4"),
        (["sample", "--model", "x", "--num-image", "3"], 2, "unrecognized arguments: --num-image 3"),
        (["score", "y.png"], 2, "score: error: the following arguments are required: --model"),
        (["info", "--model", "x", "y"], 2, "hf-ebm: error: unrecognized arguments: y"),
        (["train", "ddebm"], 2, "hf-ebm train: error: argument method: invalid choice: 'ddebm' (choose from "),
        (["--zzz"], 2, "hf-ebm: error: unrecognized arguments: --zzz"),
        (["--version"], 0, f"hf-ebm {hf_ebm.__version__}"),
    ],
)
def test_commands_that_are_not_there_and_the_version(capsys, arguments, code, said):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code and said in "".join(capsys.readouterr())


def test_the_known_commands_are_the_parsers():
    for name in COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])


def test_without_a_command_all_are_shown(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == "" and printed.err == make_parser().format_help()
    for name in ("train", "calibrate", "push-space", "hf-ebm sample --model outputs/ddaebm-digits"):
        assert name in printed.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_shows_an_example_that_parses(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and re.search(f"examples?: hf-ebm {name} ", shown)
    parser = make_parser()._subparsers._group_actions[0].choices[name]
    assert parser.description[0].isupper() and " ".join(parser.description.split()) in shown
    epilog = re.split(r"examples?:\s", parser.epilog, maxsplit=1)[1]
    examples = [part.split("#")[0] for part in re.split(r"[;\n]\s*", epilog) if part.startswith("hf-ebm ")]
    assert examples
    for example in examples:
        assert make_parser().parse_args(shlex.split(example)[1:]).command == name


@pytest.mark.parametrize("columns", ["60", "80", "90"])
def test_no_line_of_an_example_is_wrapped(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    parser = make_parser()
    for each in (parser, *parser._subparsers._group_actions[0].choices.values()):
        assert each.epilog in each.format_help(), each.prog


def test_help_shows_what_every_option_is_its_choices_and_its_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    from hf_ebm.cli.options import SCORE_NAMES

    for name, parser in make_parser()._subparsers._group_actions[0].choices.items():
        for action in parser._actions:
            shown = parser._get_formatter()._expand_help(action) if action.help else ""
            assert shown, f"{name} {action.dest}"
            if action.default not in (None, False, "==SUPPRESS==") and action.nargs != "*":
                assert f"default: {action.default}" in shown, f"{name} {action.dest}: {shown}"
    score = make_parser()._subparsers._group_actions[0].choices["score"].format_help()
    assert "{" + ",".join(SCORE_NAMES) + "}" in score and "the only split of a folder of images" in score


def test_choices_of_the_commands_are_those_of_the_code():
    """The commands do not import the code, so that help is quick."""
    from hf_ebm.cli import eval_ood, likelihood
    from hf_ebm.cli.options import SCORE_NAMES
    from hf_ebm.evaluation.synthetic_ood import SYNTHETIC_OOD
    from hf_ebm.likelihood import log_partition as model_log_z
    from hf_ebm.scoring.scores import SCORES

    assert tuple(SCORES) == SCORE_NAMES and tuple(SYNTHETIC_OOD) == eval_ood.OOD_SETS
    assert likelihood.BASES == model_log_z.BASES and likelihood.REVERSE_FROM == model_log_z.REVERSE_FROM
    assert [name for name, score in SCORES.items() if not score.needs_fitting] == [
        "energy", "gradient_norm", "reconstruction",
    ]  # fmt: skip
