"""End to end: training pushes a model, and the code of its card runs as printed."""

import json
import subprocess
import sys

import pytest
from loopback_hub.client import ClientError, environment
from loopback_hub.repository import Commit, Repository
from loopback_hub.transfers import push, python_blocks

from hf_ebm.hub.model_card import write_card

CARD = """
import os
names = {}
os.chdir(where)
for block in blocks:
    exec(block, names)
result = [type(names["pipe"]).__name__, type(names["energy_model"]).__name__, list(names.get("energies", []))[:0]]
"""


@pytest.mark.parametrize("kind", ["dual_mcmc", "scoring"])
def test_other_cards_run_as_printed(hub, client, folder, repo, tmp_path, tiny_dual_mcmc_pipeline, kind):
    """On the Hub and, as printed in the folder's own card, in the folder."""
    local = tmp_path / "local"
    if kind == "dual_mcmc":
        tiny_dual_mcmc_pipeline.save_pretrained(local)
    else:
        code = "import hf_ebm; hf_ebm.EnergyScoringPipeline.from_pretrained(folder).save_pretrained(local)"
        client(code, folder=str(folder), local=str(local))
    write_card(local)
    push(client, local, repo)
    name = json.loads((local / "model_index.json").read_text())["_class_name"]
    for card in ((local / "README.md").read_text(), hub.repositories[repo].files()["README.md"].decode()):
        blocks = python_blocks(card)
        assert len(blocks) == 3 and "More information needed" not in card and "None" not in card
        assert client(CARD, blocks=blocks, where=str(local))[:1] == [name]


def test_train_push_pull_sample_score_and_read_the_card(hub, client, repo, tmp_path):
    """Training pushes at its end; a fresh process with an empty cache runs the card as printed."""
    settings = [
        "batch_size=8", "max_steps=2", "checkpoint_every=1", "num_grid_samples=4", "models.unet.base_channels=8",
        "models.generator.latent_dim=4", "models.inference.block_out_channels=[8,16]", f"output_dir={tmp_path / 'run'}",
        "push_to_hub=true", f"hub_model_id={repo}",
    ]  # fmt: skip
    train = "from hf_ebm.training.train_ddaebm import main; main(settings)"
    hub.fail("POST .*/commit/main", "status", status=503)
    with pytest.raises(
        ClientError, match=rf"SystemExit: hf-ebm: error: the push (?s:.*)hf-ebm push --model .*run --repo-id {repo}"
    ):
        client(train, settings=settings)
    assert len(hub.repositories[repo].history["main"]) == 1  # nothing of it, but the run is whole
    client(train, settings=[*settings, "resume=latest"])  # a finished run is pushed, too
    assert len(hub.repositories[repo].history["main"]) == 2
    arguments = ["push", "--model", str(tmp_path / "run"), "--repo-id", repo]
    client("from hf_ebm.cli.main import main; main(arguments)", arguments=arguments)
    files = hub.repositories[repo].files()
    assert len(hub.repositories[repo].history["main"]) == 2 and not any("checkpoint" in path for path in files)
    code = "\n".join(python_blocks(files["README.md"].decode()))
    code += "\nprint(tuple(samples.shape), tuple(energies.shape), type(pipe).__name__, type(energy_model).__name__)"
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(hub.url, tmp_path / "home", None),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "(4, 1, 8, 8) (16,) DDAEBMPipeline UNetEnergyModel"


def test_a_run_that_could_not_push_does_not_start(hub, client, tmp_path):
    code = """
import contextlib, io, os
from hf_ebm.training.train_ddaebm import main
token = os.environ.pop("HF_TOKEN")
try:
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        main(settings)
except SystemExit as end:
    result = [end.code, printed.getvalue()]
finally:
    os.environ["HF_TOKEN"] = token
"""
    settings = ["push_to_hub=true", f"output_dir={tmp_path / 'run'}"]
    exit_code, printed = client(code, settings=settings)
    assert exit_code == 2 and "error: push_to_hub needs a login: run `hf auth login`" in printed
    code = code.replace('os.environ.pop("HF_TOKEN")', '"alice-token"')
    exit_code, printed = client(code, settings=[*settings, "hub_model_id=a//b"])
    assert exit_code == 2 and "error: hub_model_id must be a Hub id such as user/name, got 'a//b'" in printed
    code = code.replace('token = "alice-token"', 'token, os.environ["HF_TOKEN"] = "alice-token", "hf_wrong"')
    exit_code, printed = client(code, settings=settings)
    assert exit_code == 2 and "push_to_hub: the Hub does not know this login" in printed
    hub.repositories["alice/public"] = Repository(private=False)
    hub.repositories["alice/public"].commit("main", Commit("initial commit", {}))
    code = code.replace('"hf_wrong"', '"alice-token"')
    exit_code, printed = client(code, settings=[*settings, "hub_model_id=public", "hub_private=true"])
    assert exit_code == 2 and "hub_private is for a new repository, and public is there and public" in printed
    assert not (tmp_path / "run").exists()
