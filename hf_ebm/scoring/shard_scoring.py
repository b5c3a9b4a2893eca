"""Some shards of a data set, scored and written one after the other: what each process of `hf_ebm.scoring.run` does."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from hf_ebm.pipelines.pipeline_energy_scoring import EnergyScoringOutput, EnergyScoringPipeline
from hf_ebm.scoring.measures import measure_batches
from hf_ebm.scoring.rows import Rows, Span, Unreadable, prepared_batches, spans_of
from hf_ebm.scoring.run_settings import ScoringSettings
from hf_ebm.scoring.shards import ShardFolder

COLUMNS = {  # of the shards: the output's attribute, the type
    "energy": ("energies", pa.float32()),
    "score": ("scores", pa.float64()),
    "p_value": ("p_values", pa.float64()),
    "is_ood": ("is_ood", pa.bool_()),
}


@dataclass(frozen=True)
class ShardSpans:
    """The batches of some shards in their order, none of which reaches over the end of its shard."""

    folder: ShardFolder
    shards: Sequence[int]
    batch_size: int

    def __iter__(self) -> Iterator[Span]:
        for shard in self.shards:
            yield from spans_of(*self.folder.span(shard), self.batch_size)


class ScoredRows:
    """The scored rows of one shard, in places that are made at once.

    Something small kept from each batch would lie between the networks' large tensors, hold the heap in pieces, and
    make the memory of the process grow with the rows.
    """

    def __init__(self, size: int, schema: pa.Schema) -> None:
        self.schema, self.number = schema, 0
        self.ids: list[Any] = [None] * size
        self.values = {name: np.zeros(size, schema.field(name).type.to_pandas_dtype()) for name in COLUMNS}
        self.absent: set[str] = set()

    def add(self, ids: list[Any], output: EnergyScoringOutput) -> None:
        """The rows of a batch; p_value and is_ood are absent without a calibration."""
        places = slice(self.number, self.number + len(ids))
        self.ids[places] = ids
        for name, (attribute, _) in COLUMNS.items():
            values = getattr(output, attribute)
            if values is None:
                self.absent.add(name)
            else:
                self.values[name][places] = values.numpy()
        self.number += len(ids)

    def table(self) -> pa.Table:
        """All rows; what is absent is null."""
        columns = {"id": pa.array(self.ids[: self.number], self.schema.field("id").type)}
        for name, values in self.values.items():
            kind = self.schema.field(name).type
            absent = name in self.absent
            columns[name] = pa.nulls(self.number, kind) if absent else pa.array(values[: self.number], kind)
        return pa.table(columns, self.schema)


def score_shards(
    pipeline: EnergyScoringPipeline, rows: Rows, folder: ShardFolder, shards: Sequence[int], settings: ScoringSettings
) -> Iterator[int]:
    """Score and write these shards; yields the number of rows of each batch that is done.

    Raises:
        ValueError: If an image is unreadable and ``on_error`` is "stop".
    """
    id_type = pa.string() if isinstance(rows.read(0, 1)[0][0], str) else pa.int64()
    schema = pa.schema([("id", id_type), *((name, kind) for name, (_, kind) in COLUMNS.items())])
    measure = pipeline.make_measure(pipeline.needed(settings.score))
    spans = ShardSpans(folder, shards, settings.batch_size)
    preparation = (pipeline.sample_shape, settings.resize, settings.num_workers, settings.padding)
    prepared = prepared_batches(rows, spans, *preparation)
    batches = measure_batches(prepared, lambda batch: measure(batch.x) if batch.ids else {})
    for shard in shards:
        scored = ScoredRows(folder.size(shard), schema)
        unreadable: list[Unreadable] = []
        start, stop = folder.span(shard)
        for batch, measures in batches:
            if batch.unreadable and settings.on_error == "stop":
                first = batch.unreadable[0]
                raise ValueError(
                    f"image {first.name} {first.reason}; on_error=skip (--on-error skip) lists such images and goes on."
                )
            unreadable += batch.unreadable
            if batch.ids:
                scored.add(batch.ids, pipeline.judge(measures, settings.score, batch.ids))
            yield batch.stop - start
            start = batch.stop
            if batch.stop == stop:
                break
        folder.write_shard(shard, scored.table(), unreadable)


def rows_written(folder: ShardFolder, others: Sequence[deque[int]]) -> int:
    """Rows of the shards that other processes have written since the last call; each writes its own in order."""
    rows = 0
    for shards in others:
        while shards and folder.is_written(shards[0]):
            rows += folder.size(shards.popleft())
    return rows
