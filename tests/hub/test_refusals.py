"""Failing downloads and pushes: private repositories, unusable files, wrong names, no network."""

import json

import pytest
from loopback_hub.client import ClientError
from loopback_hub.transfers import cached, energies, pull, push

COMMAND = """
import contextlib, io
from hf_ebm.cli.main import main
try:
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        main(arguments)
except SystemExit as end:
    result = [end.code, printed.getvalue()]
"""


def test_private_repositories_need_their_owners_token(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo, private=True)
    assert hub.repositories[repo].private
    assert pull(client, repo, token="alice-token", cache_dir=tmp_path / "a") == energies(tiny_pipeline)
    for token in (False, "bob-token", "wrong-token"):
        message = f"OSError: '{repo}' is not a local folder, and could not be fetched from the Hub: .*40"
        with pytest.raises(ClientError, match=message):
            pull(client, repo, token=token, cache_dir=tmp_path / f"{token}")
        assert not cached(tmp_path / f"{token}")
    for token in ("bob-token", "wrong-token", False):
        with pytest.raises(ClientError, match=r"PushError: the push to .* failed: (?s:.*)try the same again"):
            push(client, folder, repo, token=token)


def test_repositories_that_are_refused_when_pulled(hub, client, folder, repo, tmp_path):
    push(client, folder, repo)
    commit = hub.repositories[repo].commits[hub.repositories[repo].branches["main"]]
    good = dict(commit.files)

    def refused(message, **files):
        changed = dict(good)
        for path, data in files.items():
            changed.pop(path.removeprefix("-"), None)
            if not path.startswith("-"):
                changed[path] = data
        large = {path for path in changed if path.endswith(".safetensors")}
        hub.repositories[repo].commit("main", type(commit)("bad", changed, large))
        with pytest.raises(ClientError, match=message):
            pull(client, repo, cache_dir=tmp_path / str(len(hub.repositories[repo].commits)))

    index = json.loads(good["model_index.json"])
    evil = json.dumps({**index, "energy_model": ["evil", "Model"]}).encode()
    refused(
        "ValueError: .*'energy_model' is a Model of 'evil'",
        **{"model_index.json": evil, "energy_model/evil.py": b"1/0"},
    )
    climbing = json.dumps({**index, "../../energy_model": index["energy_model"]}).encode()
    refused(r"ValueError: .*'../../energy_model'; it must be a plain name", **{"model_index.json": climbing})
    refused("ValueError: .*is not valid JSON", **{"model_index.json": b'{"_class'})
    weights = good["energy_model/model.safetensors"]
    refused(
        "ValueError: .*holds no safetensors of 'energy_model'",
        **{"-energy_model/model.safetensors": b"", "energy_model/pytorch_model.bin": weights},
    )
    refused("ValueError: .*damaged or cut off", **{"energy_model/model.safetensors": weights[: len(weights) // 2]})
    config = {**json.loads(good["generator_model/config.json"]), "latent_dim": "four"}
    refused(
        "ValueError: .*latent_dim must be .*int.*'four'", **{"generator_model/config.json": json.dumps(config).encode()}
    )


def test_code_that_is_trusted_is_fetched(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo)
    repository = hub.repositories[repo]
    commit = repository.commits[repository.branches["main"]]
    index = json.loads(commit.files["model_index.json"])
    index["energy_model"] = ["my_energy", "UNetEnergyModel"]
    code = b"from hf_ebm.models.unet_energy import UNetEnergyModel\n"
    files = {**commit.files, "model_index.json": json.dumps(index).encode(), "energy_model/my_energy.py": code}
    repository.commit("main", type(commit)("own code", files, commit.large))
    with pytest.raises(ClientError, match="pass trust_remote_code=True"):
        pull(client, repo, cache_dir=tmp_path / "c")
    assert pull(client, repo, cache_dir=tmp_path / "c", trust_remote_code=True) == energies(tiny_pipeline)


def test_bad_names_and_no_network(hub, client, folder, repo, tmp_path):
    push(client, folder, repo)
    pull(client, repo, cache_dir=tmp_path / "full")
    for name, options in (
        ("alice/no-such-model", {}),
        (repo, {"revision": "no-such-branch"}),
        (repo, {"subfolder": "no/such/folder"}),
    ):
        with pytest.raises(ClientError, match=f"OSError: '{name}' is not a local folder, and could not be fetched"):
            pull(client, name, cache_dir=tmp_path / "c", **options)
    with pytest.raises(ClientError, match="ValueError: subfolder must lie inside"):
        pull(client, repo, subfolder="../other")
    with pytest.raises(ClientError, match=r"ValueError: .*files of the `variant=fp8`, but .* has none"):
        pull(client, repo, variant="fp8", cache_dir=tmp_path / "c")
    with pytest.raises(ClientError, match=r"ValueError: .* holds a DDAEBMPipeline, not a DualMCMCPipeline"):
        pull(client, repo, "DualMCMCPipeline", cache_dir=tmp_path / "c")
    hub.stop()
    try:
        with pytest.raises(ClientError, match=r"PushError: .*(?s:.*)Connection refused(?s:.*)try the same again"):
            push(client, folder, repo)
        assert len(pull(client, repo, cache_dir=tmp_path / "full")) == 2  # from the cache
        arguments = ["score", "--model", "alice/x", __file__]  # a file that is there
        code, error = client(COMMAND, arguments=arguments)
    finally:
        hub.start_again()
    assert code == 2
    said = "hf-ebm: error: 'alice/x' is not a local folder, and could not be fetched from the Hub: "
    assert said in error and "check your connection" in error and "Traceback" not in error
