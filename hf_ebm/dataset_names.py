"""Which data set a command is told, ``name[:config][@split]``, and its images as a model takes them.

    digits    cifar10    user/set:large@validation    folder/of/images@test

A command has a split that it takes where the name says none. A set that lacks it and has exactly one split is taken as
a whole, and its source says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from hf_ebm.card_tables import public_name
from hf_ebm.data import EMBEDDED_NAMES, fingerprint, load_training_data
from hf_ebm.hub_datasets import find_splits
from hf_ebm.user_paths import expand_home


@dataclass(frozen=True)
class DatasetName:
    """A data set that somebody named.

    Attributes:
        name: ``"digits"``, a 2-D set, a Hub id, or a folder.
        config: Configuration of a Hub data set.
        split: None = the command's own.
    """

    name: str
    config: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> DatasetName:
        """The parts of ``name[:config][@split]``; a path that exists is a name as it stands.

        Raises:
            ValueError: If a part is empty, or an embedded set is given a configuration.
        """
        text = expand_home(text)
        if text and Path(text).exists():
            return cls(text)
        rest, at, split = text.rpartition("@") if "@" in text else (text, "", "")
        name, colon, config = (rest, "", "") if Path(rest).exists() else rest.partition(":")
        if not name or (at and not split) or (colon and not config):
            raise ValueError(f"a data set must be named as name[:config][@split], got {text!r}.")
        if config and name in EMBEDDED_NAMES:
            raise ValueError(f"the embedded data set {name!r} has no configurations, got {text!r}.")
        return cls(name, config or None, split or None)

    def choose_split(self, asked: str | None, default: str) -> str:
        """The name's split, or the one that an option asks for, or the `default`.

        Raises:
            ValueError: If name and option say different ones.
        """
        if self.split and asked and self.split != asked:
            raise ValueError(f"--split {asked} and the data set's name, {self.name}@{self.split}, differ; give one.")
        return self.split or asked or default

    def of_split(self, split: str) -> DatasetName:
        """Another split of the same data set."""
        return replace(self, split=split)

    @property
    def public(self) -> str:
        """How records show it: of a local folder the last part alone."""
        config, split = f":{self.config}" if self.config else "", f"@{self.split}" if self.split else ""
        return f"{public_name(self.name)}{config}{split}"


def load_named(
    dataset: str | DatasetName,
    sample_shape: tuple[int, ...],
    default_split: str,
    image_column: str | None = None,
    padding: int = 0,
) -> tuple[Dataset, dict[str, Any]]:
    """A named data set as `hf_ebm.data.load_training_data` gives it, and its source.

    Args:
        dataset: ``name[:config][@split]``, or its parts.
        sample_shape: What the model takes.
        default_split: Where the name says none.
        image_column: Column with the images; None = the only image column.
        padding: Black pixels on each side, as in training.

    Returns:
        The data set, and ``{"dataset", "split", "fingerprint"}``, with ``"config"`` where there is one and
        ``"only_split": True`` where the default split is not there and the only one was taken.

    Raises:
        ValueError: If the data set is missing or does not fit, or lacks the split and has several others.
    """
    named = DatasetName.parse(dataset) if isinstance(dataset, str) else dataset
    split, only = named.split or default_split, False

    def load(split: str) -> Any:
        return load_training_data(
            named.name,
            sample_shape,
            split=split,
            config_name=named.config,
            image_column=image_column,
            padding=padding,
        )

    try:
        loaded = load(split)
    except ValueError as error:
        no_more = named.split or named.name in EMBEDDED_NAMES or isinstance(error.__cause__, ConnectionError)
        splits = (
            [] if no_more else find_splits(named.name, named.config)
        )  # a Hub that was not reached is not asked again
        if not splits or split in splits:
            raise
        if len(splits) > 1:
            raise ValueError(
                f"data set {named.name!r} has no split {split!r}; name one of {splits} as {named.name}@{splits[0]}."
            ) from error
        split, only = splits[0], True
        loaded = load(split)
    source = {"dataset": public_name(named.name), "split": split, "fingerprint": fingerprint(loaded)}
    source |= {"config": named.config} if named.config else {}
    return loaded, source | ({"only_split": True} if only else {})
