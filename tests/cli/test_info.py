"""hf-ebm info: the contents of a run folder."""

import json

from hf_ebm.cli.main import main


def test_info_lists_the_contents(dual_folder, folder, capsys, tiny_dual_mcmc_pipeline):
    from hf_ebm import EnergyScoringPipeline
    from hf_ebm.data.digits import load_digits

    main(["info", "--model", dual_folder, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "Dual-MCMC Teaching" and found["sample_shape"] == [1, 8, 8]
    assert found["tasks"] == ["generate", "score", "reconstruct", "interpolate", "inpaint"]
    expected = sum(p.numel() for p in tiny_dual_mcmc_pipeline.energy_model.parameters())
    assert found["networks"]["energy_model"]["parameters"] == expected
    assert found["networks"]["energy_model"]["bytes"] > 4 * expected
    assert found["samplers"]["scheduler"]["settings"]["step_size"] == 0.5
    assert found["calibration"] is None and found["training"] is None and found["evaluations"] == []
    scorer = EnergyScoringPipeline.from_pretrained(folder)
    scorer.calibrate(load_digits("test")[0][:40], target_fpr=0.1)
    scorer.calibration.save(folder)
    main(["info", "--model", folder])
    printed = capsys.readouterr().out
    assert ": DDAEBM (DDAEBMPipeline)" in printed and "tasks: generate, score\n" in printed
    assert "calibrated on 40 samples, target_fpr=0.1" in printed and "DDAEBMScheduler(" in printed
