"""The rows that scoring at scale wrote, and a folder of pictures for it of which two cannot be read."""

import numpy as np
import PIL.Image
import pyarrow.parquet as pq


def read(folder):
    """All rows of a run, in order."""
    return pq.read_table(sorted((folder / "scores").glob("*.parquet"))).to_pylist()


def image_folder(folder, count=7):
    """Numbered 8x8 pictures, of which two cannot be read."""
    folder.mkdir()
    for index in range(count):
        PIL.Image.fromarray(np.full((8, 8), 20 * index, dtype=np.uint8)).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes(b"not a picture")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:-30])
    return str(folder)
