"""The rows of a bulk scoring run, and a folder of images for it with two unreadable ones."""

import numpy as np
import PIL.Image
import pyarrow.parquet as pq


def read(folder):
    """All rows of a run, in order."""
    return pq.read_table(sorted((folder / "scores").glob("*.parquet"))).to_pylist()


def image_folder(folder, count=7):
    """Numbered 8x8 images, two of them unreadable."""
    folder.mkdir()
    for index in range(count):
        PIL.Image.fromarray(np.full((8, 8), 20 * index, dtype=np.uint8)).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes(b"not a picture")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:-30])
    return str(folder)
