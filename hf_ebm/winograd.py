"""3x3 convolutions by Winograd's minimal filtering: two times as fast where a layer is wide, on a CPU without AVX-512.

    with WinogradConvolutions():
        images = pipe(batch_size=4).images  # or a train step: any forward and its backward

A tile of 4x4 results takes 36 multiplications per pair of channels, where the direct way takes 144; what remains is one
batched matrix product. PyTorch's CPU convolutions (oneDNN's) are direct ones, and its Winograd kernel, NNPACK's,
transforms the weights anew at each call and is slower than they (`benchmarks/convolutions.py`). With AVX-512 the direct
ones are so fast that layers of 512 channels alone gain, by a fifth; where such a CPU has bf16 units, they give more.
Results differ from the direct ones by rounding: some 1e-5 of the largest value, where the direct ones have some 2e-6.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, F(4x4, 3x3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

# A 1-D tile: `RESULT @ ((FILTER @ filter) * (DATA @ data))` is the correlation of 6 values with 3, which has 4 values
DATA = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float32,
)
FILTER = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float32
).div(24)
RESULT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float32
)
FILTER_2D = torch.kron(FILTER, FILTER)
# Of input and output; narrower layers spend as much on the transforms as they save, and the faster the multiplications
# are, the wider a layer must be.
MIN_CHANNELS = 512 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 128
MIN_TILES = 32  # in a batch; below, the transformed weights, four times as large, take as long to read
TILES_AT_ONCE = 128  # fewer make small matrices, more leave the cache


class Buffers:
    """Memory that is used again and again: on a CPU fresh memory costs as much as the work."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """The memory of that name, float32, in this shape, not filled."""
        if name not in self.kept or self.kept[name].numel() < math.prod(shape):
            self.kept[name] = torch.empty(math.prod(shape), dtype=torch.float32, device="cpu")
        return self.kept[name][: math.prod(shape)].view(shape)


class TransformedWeight:
    """A weight's transforms, made when first asked for: of the convolution and of its transpose.

    Args:
        weight: Shape (out, in, 3, 3).
        buffer: Memory for the convolutions by it.
    """

    def __init__(self, weight: Tensor, buffer: Buffers) -> None:
        self.buffer = buffer
        self.weight = weight.detach().clone()
        self.transforms: dict[bool, Tensor] = {}

    def get(self, transposed: bool) -> Tensor:
        """Shape (36, in, out); of the transpose (36, out, in)."""
        if transposed not in self.transforms:
            num_out, num_in = self.weight.shape[:2]
            matrix = FILTER_2D.flip(1) if transposed else FILTER_2D  # turning the filter by 180 degrees
            filters = (matrix @ self.weight.reshape(num_out * num_in, 9).T).view(36, num_out, num_in)
            self.transforms[transposed] = filters if transposed else filters.transpose(1, 2)
        return self.transforms[transposed]


def winograd_convolution(x: Tensor, weight: Tensor, transformed: TransformedWeight, transposed: bool) -> Tensor:
    """``conv2d(x, weight, padding=1)``, or its transpose, which takes (B, out, H, W) and gives (B, in, H, W).

    Differentiable by `x` as often as wanted, by `weight` once and last, as training has it.
    """
    shape = (len(x), weight.shape[1 if transposed else 0], *x.shape[2:])
    later = None  # the weight's gradient
    if weight.requires_grad and torch.is_grad_enabled():
        later = WeightGradient.apply(weight, x.detach(), shape, transformed.buffer, transposed)
    return WinogradConvolution.apply(x, later, weight, transformed, transposed)


class WinogradConvolution(torch.autograd.Function):
    """The convolution; the input's gradient is its transpose, and the weight's is left to `WeightGradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _: Tensor | None, *convolution: Any) -> Tensor:
        """The convolution of `x`; the second argument is where the result's gradient is handed on to."""
        ctx.weight, ctx.transformed, ctx.transposed = convolution
        return convolve(x, ctx.transformed.get(ctx.transposed), ctx.transformed.buffer)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the two tensors."""
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = winograd_convolution(grads[0], ctx.weight, ctx.transformed, not ctx.transposed)
        return grad_x, grads[0] if ctx.needs_input_grad[1] else None, None, None, None


class WeightGradient(torch.autograd.Function):
    """A part of the graph of its own, since a chain's passes, which want no weight's gradient, shall not compute it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, shape: tuple[int, ...], *convolution: Any) -> Tensor:
        """Zeros in the result's `shape` without its memory."""
        ctx.save_for_backward(x)
        ctx.buffer, ctx.transposed = convolution
        return x.new_zeros(()).expand(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The weight's gradient."""
        (x,) = ctx.saved_tensors
        data, grad = (grad, x) if ctx.transposed else (x, grad)
        return weight_gradient(data, grad, ctx.buffer), None, None, None, None


def convolve(x: Tensor, transform: Tensor, buffer: Buffers) -> Tensor:
    """The convolution of `x`, shape (B, in, H, W), H and W divisible by 4, with a `TransformedWeight`'s transform."""
    batch_size, num_in, height, width = x.shape
    padded, num_out = pad(x, buffer), transform.shape[2]
    result = x.new_empty(batch_size, height // 4, 4, width // 4, 4, num_out)
    for images, rows in pieces(batch_size, height // 4, width // 4, TILES_AT_ONCE):
        part = result[images, rows]
        data = transform_data(padded, images, rows, buffer)
        products = buffer("products", 36, data.shape[2], num_out)
        torch.bmm(data.view(36, -1, num_in), transform, out=products)
        values = transform_tiles(RESULT, products.view(6, 6, -1), buffer)
        part.copy_(values.view(4, 4, *part[:, :, 0, :, 0].shape).permute(2, 3, 0, 4, 1, 5))
    return result.view(batch_size, height, width, num_out).permute(0, 3, 1, 2)


def weight_gradient(x: Tensor, grad: Tensor, buffer: Buffers) -> Tensor:
    """The gradient of the weight, shape (out, in, 3, 3), of ``conv2d(x, weight, padding=1)`` by the result's, `grad`.

    Args:
        x: Shape (B, in, H, W), H and W divisible by 4.
        grad: Shape (B, out, H, W).
        buffer: Memory.
    """
    batch_size, num_in, height, width = x.shape
    padded, num_out = pad(x, buffer), grad.shape[1]
    tiles = grad.permute(0, 2, 3, 1).unflatten(2, (width // 4, 4)).unflatten(1, (height // 4, 4))
    total = buffer("total", 36, num_in, num_out)
    for number, (images, rows) in enumerate(pieces(batch_size, height // 4, width // 4, 4 * TILES_AT_ONCE)):
        part = tiles[images, rows]
        values = buffer("tiles", 4, 4, part[:, :, 0, :, 0].numel())
        values.view(4, 4, *part[:, :, 0, :, 0].shape).copy_(part.permute(2, 4, 0, 1, 3, 5))
        grads = transform_tiles(RESULT.T, values, buffer, "grads")
        data = transform_data(padded, images, rows, buffer)
        before = 0 if number == 0 else 1  # with 0 what the memory holds is not read
        total.baddbmm_(data.view(36, -1, num_in).transpose(1, 2), grads.view(36, -1, num_out), beta=before)
    return (FILTER_2D.T @ total.view(36, -1)).view(3, 3, num_in, num_out).permute(3, 2, 0, 1)


def pieces(batch_size: int, rows: int, columns: int, num_tiles: int) -> Iterator[tuple[slice, slice]]:
    """Of all tiles, by images and rows of tiles, `num_tiles` at a time, or one row's."""
    images_at_once = max(1, num_tiles // (rows * columns))
    rows_at_once = min(rows, max(1, num_tiles // columns))
    for image in range(0, batch_size, images_at_once):
        for row in range(0, rows, rows_at_once):
            yield slice(image, image + images_at_once), slice(row, row + rows_at_once)


def pad(x: Tensor, buffer: Buffers) -> Tensor:
    """`x`, shape (B, C, H, W), with a border of zeros and the channels last, (B, H + 2, W + 2, C)."""
    batch_size, channels, height, width = x.shape
    padded = buffer("padded", batch_size, height + 2, width + 2, channels)
    padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    for border in (padded[:, 0], padded[:, -1], padded[:, :, 0], padded[:, :, -1]):
        border.zero_()
    return padded


def transform_data(padded: Tensor, images: slice, rows: slice, buffer: Buffers) -> Tensor:
    """The transforms of some images' and rows' tiles of 6x6 pixels, which overlap by 2, shape (6, 6, tiles, C)."""
    by_image, by_row, by_column, by_channel = padded.stride()
    batch_size, height, width, channels = padded.shape
    tiles = padded.as_strided(
        (batch_size, height // 4, width // 4, 6, 6, channels),
        (by_image, 4 * by_row, 4 * by_column, by_row, by_column, by_channel),
    )[images, rows]
    num_images, num_rows, columns = tiles.shape[:3]
    values = buffer("tiles", 6, 6, num_images, num_rows, columns, channels)
    values.copy_(tiles.permute(3, 4, 0, 1, 2, 5))
    transformed = transform_tiles(DATA, values.view(6, 6, -1), buffer, "data")
    return transformed.view(6, 6, -1, channels)


def transform_tiles(matrix: Tensor, tiles: Tensor, buffer: Buffers, name: str = "values") -> Tensor:
    """``matrix @ tile @ matrix.T`` of each: shape (k, k, N) -> (m, m, N) for an (m, k) matrix."""
    size, old_size = matrix.shape
    half = torch.mm(matrix, tiles.reshape(old_size, -1), out=buffer("half", size, old_size * tiles.shape[2]))
    out = buffer(name, size, size, tiles.shape[2])
    return torch.bmm(matrix.expand(size, size, old_size), half.view(size, old_size, -1), out=out)


class WinogradConvolutions(TorchFunctionMode):
    """Inside, convolutions that gain by it are done by Winograd's algorithm; all others are PyTorch's, as ever.

    Those gain that are of float32 tensors on a CPU, 3x3, of stride and padding 1, with at least `MIN_CHANNELS` channels
    on both sides and a height and width divisible by 4. Transforms of a weight are kept as long as the weight, and made
    anew when it changes. Not for compiled networks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.transformed: Any = WeakIdKeyDictionary()
        self.buffer = Buffers()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called for each function of PyTorch."""
        if func is not F.conv2d or not gains(*args, **(kwargs or {})):
            return func(*args, **(kwargs or {}))
        return self.conv2d(*args, **(kwargs or {}))

    def conv2d(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """``torch.nn.functional.conv2d`` with padding 1."""
        transformed = self.transformed.get(weight)
        if transformed is None or not torch.equal(transformed.weight, weight):  # fused optimizers raise no `_version`
            transformed = self.transformed[weight] = TransformedWeight(weight, self.buffer)
        result = winograd_convolution(input, weight, transformed, False)
        return result if bias is None else result + bias[:, None, None]


def gains(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Whether a ``conv2d`` of these arguments is one that `WinogradConvolutions` takes over."""
    if input.ndim != 4 or weight.shape[2:] != (3, 3) or min(weight.shape[:2]) < MIN_CHANNELS or groups != 1:
        return False
    if any(tensor.dtype != torch.float32 or tensor.device.type != "cpu" for tensor in (input, weight)):
        return False
    batch_size, _, height, width = input.shape
    if height % 4 or width % 4 or batch_size * height * width < 16 * MIN_TILES or torch.is_autocast_enabled("cpu"):
        return False
    return all(value in (1, (1, 1), [1, 1]) for value in (stride, padding, dilation))
