"""Licences of a card: the Hub's ids, and other licences by name."""

import pytest

from hf_ebm.hub.model_card import check_license


@pytest.mark.parametrize(("license_id", "name"), [(None, None), ("mit", None), ("openrail++", None), ("other", "mine")])
def test_ids_of_the_hub_and_named_others(license_id, name):
    check_license("license", license_id, name)


@pytest.mark.parametrize(
    ("argument", "license_id", "name", "message"),
    [
        ("license", "apache2", None, "license must be .*license_name.*'apache2'; did you mean apache-2.0"),
        ("license", "MIT", None, "license must be"),
        ("license", "", None, "license must be"),
        ("--license", "my own", None, "--license must be .*--license-name.* the list is at https"),
        ("--license", "other", None, "--license-name is needed for --license other"),
        ("license", "mit", "mine", "license_name is needed for license other, and only for it; got 'mit'"),
    ],
)
def test_others_are_refused(argument, license_id, name, message):
    with pytest.raises(ValueError, match=message):
        check_license(argument, license_id, name)
