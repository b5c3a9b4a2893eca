"""Licence ids of the Hub, as model cards name the licence of a model's weights."""

from __future__ import annotations

from hf_ebm.near_names import did_you_mean

LIST = "https://huggingface.co/docs/hub/repositories-licenses"
OTHER = "other"  # any licence that is not in the Hub's list; the card then gives its name
IDS = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc
lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa
odbl odc-by ofl-1.1 open-mdw openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
LICENSES = frozenset(IDS.split())


def check_license(argument: str, license_id: str | None, license_name: str | None) -> None:
    """Raise a `ValueError` unless a licence is None, an id of the Hub's list, or ``"other"`` with a name.

    Args:
        argument: How the caller calls the id, for the message: ``"license"`` or ``"--license"``.
        license_id: The id.
        license_name: The name of a licence that is not in the list.
    """
    if license_id is not None and license_id not in LICENSES:
        near = did_you_mean(license_id, LICENSES, f"the list is at {LIST}.")
        raise ValueError(
            f"{argument} must be a licence id of the Hub such as mit or cc-by-nc-4.0, got {license_id!r}; {near} For a "
            f"licence that is not in the list: {argument} other, with its name as {argument}{_name(argument)}."
        )
    if license_id == OTHER and not license_name:
        raise ValueError(f"{argument} other needs the licence's name: give it as {argument}{_name(argument)}.")
    if license_name and license_id != OTHER:
        raise ValueError(
            f"{argument}{_name(argument)} is for {argument} other, and {argument} is {license_id!r}; leave it out, or "
            f"give {argument} other."
        )


def _name(argument: str) -> str:
    return "-name" if argument.startswith("--") else "_name"
