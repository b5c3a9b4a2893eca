"""Image files of every kind: converted with the right values, or rejected with the reason."""

import io
import socketserver
import struct
import threading
import zlib

import numpy as np
import PIL.Image
import pytest
from torch.testing import assert_close

from hf_ebm.data.image_files import MAX_PIXELS, convert_image, open_image
from hf_ebm.data.image_processor import EBMImageProcessor
from hf_ebm.scoring.inputs import images_to_tensor, prepare_rows, prepare_sample

GRAY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = np.stack([GRAY, GRAY[::-1], GRAY.T], axis=-1)


def encoded(image, kind="png", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_size(width, height):
    """A PNG header with its size and no pixels: a decompression bomb before it is decoded."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def animation(kind):
    frames = [PIL.Image.fromarray(COLOUR), PIL.Image.fromarray(COLOUR[::-1].copy())]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def photo(image):
    """A JPEG whose camera was turned."""
    exif = image.getexif()
    exif[274] = 6
    return encoded(image, "jpeg", exif=exif, quality=100)


PNG = encoded(PIL.Image.fromarray(COLOUR))
REFUSED = {
    "corrupt": (b"\x89PNG\r\n\x1a\n but no more", "not an image of a known format"),
    "no picture": (b"plain text", "not an image of a known format"),
    "empty file": (b"", "not an image of a known format"),
    "truncated png": (PNG[:-30], "truncated"),
    "truncated jpeg": (encoded(PIL.Image.fromarray(COLOUR), "jpeg")[:-60], "truncated"),
    "bomb at PIL's warning": (png_of_size(10_000, 9_000), f"{MAX_PIXELS:,}: a decompression bomb"),
    "bomb at PIL's error": (png_of_size(50_000, 50_000), f"{MAX_PIXELS:,}: a decompression bomb"),
    "animated gif": (animation("gif"), "2 frames"),
    "animated webp": (animation("webp"), "2 frames"),
    "animated png": (animation("png"), "2 frames"),
    "tiff of two pages": (animation("tiff"), "2 frames"),
    "eps": (encoded(PIL.Image.fromarray(COLOUR), "eps"), "not an image of a known format"),
    "eps opened by the caller": (PIL.Image.open(io.BytesIO(encoded(PIL.Image.fromarray(COLOUR), "eps"))), "EPS"),
    "missing file": ("no-such-file.png", "No such file"),
    "row without an image": ({"bytes": None, "path": None}, "holds no image"),
    "number": (17, "got int"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    source, reason = REFUSED[name]
    with pytest.raises(ValueError, match=rf"^cannot be read \(.*(?i:{reason})"):
        open_image(source)


@pytest.mark.parametrize("kind", ["png", "jpeg", "mpo", "webp", "bmp", "gif", "tiff", "ppm", "jpeg2000"])
def test_formats_that_are_read(kind):
    image = PIL.Image.fromarray(COLOUR)
    assert open_image(encoded(image, kind)).size == open_image(PIL.Image.open(io.BytesIO(encoded(image, kind)))).size


def test_no_image_file_starts_another_program(monkeypatch):
    """Every format that is read is decoded by Pillow itself: with EPS, a file would choose what Ghostscript runs."""
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    eps = encoded(PIL.Image.fromarray(COLOUR), "eps")
    for source in (eps, {"bytes": eps, "path": "a.png"}, PIL.Image.open(io.BytesIO(eps))):
        with pytest.raises(ValueError, match=r"^cannot be read \("):
            open_image(source)
    with pytest.raises(ValueError, match="EPS"):
        images_to_tensor(PIL.Image.open(io.BytesIO(eps)), (3, 8, 8))


def test_the_limit_holds_where_pils_own_is_switched_off(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ValueError, match=f"{MAX_PIXELS:,}"):
        open_image(png_of_size(50_000, 50_000))


def luma(colour):
    """ITU-R 601-2, as PIL documents its conversion."""
    return colour.astype(float) @ (0.299, 0.587, 0.114)


def kinds():
    gray, colour = PIL.Image.fromarray(GRAY), PIL.Image.fromarray(COLOUR)
    alpha = np.zeros((8, 8), dtype=np.uint8)
    alpha[:4] = 255
    half_clear = np.where(alpha[..., None] == 255, COLOUR, 255)  # the lower half shows the white below
    deep = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    palette = PIL.Image.fromarray(GRAY // 128).convert("L")
    palette = PIL.Image.frombytes("P", (8, 8), palette.tobytes())
    palette.putpalette([200, 10, 30, 0, 250, 90])
    of_palette = np.where((GRAY < 128)[..., None], (200, 10, 30), (0, 250, 90))
    cmyk = np.concatenate([255 - COLOUR, np.zeros((8, 8, 1), dtype=np.uint8)], axis=-1)
    return {
        "gray": (encoded(gray), np.stack([GRAY] * 3, -1)),
        "colour": (encoded(colour), COLOUR),
        "one bit": (encoded(PIL.Image.fromarray(GRAY > 100)), np.stack([np.where(GRAY > 100, 255, 0)] * 3, -1)),
        "16 bits": (encoded(PIL.Image.fromarray(deep)), np.stack([np.rint(deep / 65535 * 255)] * 3, -1)),
        "rgba, opaque": (encoded(colour.convert("RGBA")), COLOUR),
        "rgba": (encoded(PIL.Image.fromarray(np.concatenate([COLOUR, alpha[..., None]], -1))), half_clear),
        "gray, alpha": (
            encoded(PIL.Image.merge("LA", [gray, PIL.Image.fromarray(alpha)])),
            np.where(alpha[..., None] == 255, np.stack([GRAY] * 3, -1), 255),
        ),
        "palette": (encoded(palette), of_palette),
        "palette, transparent": (
            encoded(palette, transparency=1),
            np.where((GRAY < 128)[..., None], of_palette, 255),
        ),
        "cmyk": (encoded(PIL.Image.frombytes("CMYK", (8, 8), cmyk.tobytes()), "tiff"), COLOUR),
        "gif of one frame": (encoded(palette, "gif"), of_palette),
    }


def sample(source, shape, do_resize, padding=0):
    """One row as a batch of the model."""
    processor = EBMImageProcessor(shape[-1], shape[0], padding, do_resize)
    batch = prepare_rows([(0, source)], 0, shape, processor)
    assert not batch.unreadable
    return batch.x


@pytest.mark.parametrize("name", sorted(kinds()))
def test_converted_values(name):
    source, expected = kinds()[name]
    image = open_image(source)
    assert np.abs(np.asarray(convert_image(image, 3)).astype(float) - expected).max() <= 1
    assert np.abs(np.asarray(convert_image(image, 1)).astype(float) - luma(expected)).max() <= 1
    x = sample(source, (3, 8, 8), do_resize=True)
    assert (x.add(1).mul(127.5)[0].permute(1, 2, 0).numpy() - expected).__abs__().max() <= 1.01
    for shape in ((3, 8, 8), (1, 8, 8)):
        assert_close(sample(source, shape, do_resize=False), sample(source, shape, do_resize=True))


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_modes_of_unknown_range_are_not_converted(mode):
    with pytest.raises(ValueError, match=f"does not fit .*{mode!r}"):
        prepare_sample(PIL.Image.new(mode, (8, 8)), (1, 8, 8), None)


def test_a_turned_photograph_stands_upright():
    image = PIL.Image.fromarray(np.repeat(np.repeat(GRAY[:4], 8, 0), 8, 1))  # 64 wide, 32 high
    opened = open_image(photo(image))
    assert opened.size == (32, 64)
    turned = np.rot90(np.asarray(image), k=-1)  # orientation 6: to be turned clockwise
    assert np.abs(np.asarray(opened).astype(float) - turned).max() < 20
    square = PIL.Image.fromarray(np.asarray(image)[:, :32])
    upright = prepare_sample(photo(square), (1, 32, 32), EBMImageProcessor(32, 1, do_resize=False))[0, 0]
    assert np.abs((upright.numpy() + 1) * 127.5 - np.rot90(np.asarray(square), k=-1)).max() < 20


def test_errors_name_wrong_sizes_and_channels():
    with pytest.raises(ValueError, match=r"does not fit .*9 x 9 pixels with do_resize=False, got 8 x 8"):
        prepare_sample(PNG, (3, 9, 9), EBMImageProcessor(9, 3, do_resize=False))
    assert prepare_sample(PNG, (3, 9, 9), None).shape == (1, 3, 9, 9)
    with pytest.raises(ValueError, match=r"does not fit .*vectors"):
        prepare_sample(PNG, (2,), None)
    with pytest.raises(ValueError, match=r"does not fit .*PIL images for a model of 2 channels"):
        prepare_sample(PNG, (2, 8, 8), None)


@pytest.mark.parametrize("channels", [1, 3])
def test_padding(channels):
    """Black pixels around images of every size but the final one, which has them already."""
    mode = {1: "L", 3: "RGB"}[channels]
    small, large, other = (PIL.Image.new(mode, (side, side), "white") for side in (6, 10, 9))
    small.putpixel((1, 2), 90 if channels == 1 else (90, 20, 250))
    shape = (channels, 10, 10)
    for do_resize in (False, True):
        x = sample(small, shape, do_resize, padding=2)
        inner = x[..., 2:-2, 2:-2].clone()
        assert_close(inner, sample(small, (channels, 6, 6), do_resize))
        x[..., 2:-2, 2:-2] = -1
        assert (x == -1).all()
        assert (sample(large, shape, do_resize, padding=2) == 1).all()
    x = sample(other, shape, True, padding=2)
    assert (x[..., 2:-2, 2:-2] == 1).all() and (x[..., :2] == -1).all()
    with pytest.raises(ValueError, match=r"6 x 6 pixels with do_resize=False, got 9 x 9"):
        prepare_sample(other, shape, EBMImageProcessor(10, channels, 2, do_resize=False))


def test_urls_paths_bytes_and_undecoded_rows_are_the_same_image(file_server, tmp_path):
    import fsspec

    (tmp_path / "a.png").write_bytes(PNG)
    with fsspec.open("memory://a.png", "wb") as file:
        file.write(PNG)
    row = {"bytes": None, "path": str(tmp_path / "a.png")}
    sources = [f"{file_server}/a.png", "memory://a.png", tmp_path / "a.png", str(tmp_path / "a.png"), PNG, row]
    for source in [*sources, {"bytes": PNG, "path": "elsewhere.png"}, PIL.Image.open(tmp_path / "a.png")]:
        assert np.array_equal(np.asarray(open_image(source)), COLOUR)
    with pytest.raises(ValueError, match="404"):
        open_image(f"{file_server}/b.png")


@pytest.fixture
def odd_server(monkeypatch):
    """A web server whose answers are wrong: too short, no HTTP, endless."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    answers = {
        "/short": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(PNG) + 100) + PNG,
        "/chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc",
        "/words": b"good day\r\n\r\n",
        "/long": b"HTTP/1.1 200 OK\r\n\r\n" + PNG + b"0" * 2000,
    }

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            path = self.rfile.readline().split()[1].decode()
            while self.rfile.readline().strip():
                pass
            self.wfile.write(answers[path])

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("path", ["/short", "/chunks", "/words", "/long", "/a b"])
def test_a_bad_response_is_one_unreadable_image(odd_server, path, monkeypatch):
    monkeypatch.setattr("hf_ebm.data.image_files.MAX_BYTES", len(PNG) + 1000)
    with pytest.raises(ValueError, match=r"^cannot be read \("):
        open_image(odd_server + path)


def test_a_bad_archive_is_one_unreadable_image(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"no archive")
    batch = prepare_rows([(0, f"zip://a.png::{tmp_path}/a.zip"), (1, "nothing://a.png"), (2, PNG)], 0, (3, 8, 8), None)
    assert [row.row for row in batch.unreadable] == [0, 1] and batch.ids == [2]
