"""Records of training and evaluation in a run folder, as a model card reads them."""

SUMMARY = {
    "steps": 10,
    "seconds": 60.0,
    "steps_per_second": 0.1667,
    "num_images": 1437,
    "num_processes": 1,
    "hardware": "a test",
    "torch_version": "2.13.0",
    "parameters": {"generator_model": 10, "energy_model": 2000, "inference_model": 30},
}
INDEX = {
    "_class_name": "DDAEBMPipeline",
    "energy_model": ["hf_ebm.models.unet_energy", "UNetEnergyModel"],
    "inference_model": [None, None],
}
METRICS = {
    "frechet_distance": {
        "samples": 3.5,
        "floor": 1.5,
        "pixel_gaussian": 24.5,
        "feature_extractor": "an extractor",
        "num_samples": 100,
        "num_reference": 50,
    },
    "auroc": {"noise": 0.99},
}


def evaluation(standard=False):
    extractor = {"name": "a network", "is_standard_inception": standard}
    reference = {"dataset": "digits", "split": "test", "num_images": 360}
    return {
        "metrics": {
            "frechet_distance": {"samples": 4.25, "std_over_seeds": None, "floor": 1.5},
            "kernel_distance": {"samples": 0.5, "std_over_seeds": 0.1, "floor": None},
            "kernel_distance_std": {"samples": 0.2, "std_over_seeds": 0.1, "floor": None},
        },
        "reconstruction": {
            "inference_model": {"mse": 0.2},
            "z_chain": {"mse": 0.1},
            "num_steps": 3,
            "num_images": 9,
        },
        "limits": ["few images."],
        "protocol": {
            "feature_extractor": extractor,
            "reference": reference,
            "floor": None,
            "num_images": 7,
            "seed": 0,
            "num_seeds": 2,
        },
    }


OOD = {
    "metrics": {
        name: {
            "noise": {"auroc": {"value": 0.91, "low": 0.9, "high": 0.92}},
            "mean": {
                metric: {"value": value, "low": value - 0.01, "high": value + 0.01}
                for metric, value in (("auroc", 0.91), ("aupr_out", 0.82), ("aupr_in", 0.83), ("fpr95", 0.34))
            },
        }
        for name in ("typicality", "pca_residual")
    },
    "protocol": {
        "in_distribution": {"dataset": "digits", "split": "test", "num_images": 360},
        "intervals": "95 %",
        "preprocessing": "none",
        "seed": 0,
        "scores": {"of_the_model": ["typicality"], "baselines": ["pca_residual"]},
    },
}
