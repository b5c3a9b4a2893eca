"""The Hub's validation of model card metadata."""

from __future__ import annotations

import contextlib
import re

import yaml

from hf_ebm.hub.model_card import LICENSES


def card_errors(content: str) -> list[str]:
    """What the Hub refuses in a card's metadata: by its documentation, as far as our cards use it."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if match is None:
        return ["there is no metadata"]
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"metadata is no YAML: {error}"]
    errors = [
        f'"{key}" must be a string'
        for key in ("license", "library_name", "pipeline_tag")
        if not isinstance(data.get(key, ""), str)
    ]
    if data.get("license", "mit") not in LICENSES:
        errors.append(f'"license" must be one of the Hub\'s, got {data["license"]!r}')
    for model in data.get("model-index", []):
        for result in model.get("results", []):
            with contextlib.suppress(KeyError, TypeError):
                dataset, metrics = result["dataset"], result["metrics"]
                if (
                    isinstance(result["task"]["type"], str)
                    and dataset["name"]
                    and dataset["type"]
                    and all(metric["type"] and metric["value"] is not None for metric in metrics)
                ):
                    continue
            errors.append(f'"model-index" has a result without task, dataset or metric: {result}')
    return errors
