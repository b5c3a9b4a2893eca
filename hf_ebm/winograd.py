"""3x3 convolutions by Winograd's minimal filtering: on a CPU two times as fast where a layer is wide.

    with WinogradConvolutions():
        images = pipe(batch_size=4).images  # or a train step: any forward and its backward

A tile of 4x4 results takes 36 multiplications per pair of channels, where the direct way takes 144; what remains is one
batched matrix product. PyTorch's CPU convolutions (oneDNN on AVX2) are direct ones, and its Winograd kernel, NNPACK's,
transforms the weights anew at each call and was slower than they in all that we measured. Results differ from the
direct ones by rounding: some 1e-5 of the largest value, where the direct ones have some 2e-6.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, F(4x4, 3x3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight
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
FILTER = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
RESULT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float32
)
FILTER_2D = torch.kron(FILTER, FILTER)
MIN_CHANNELS = 128  # of input and output; narrower layers spend as much on the transforms as they save
MIN_TILES = 32  # in a batch; below, the transformed weights, four times as large, take as long to read
TILES_AT_ONCE = 64  # their transforms stay in the cache


class TransformedWeight:
    """A weight's transforms, made when first asked for: of the convolution and of its transpose.

    Args:
        weight: Shape (out, in, 3, 3).
    """

    def __init__(self, weight: Tensor) -> None:
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
    weight_gradient = WeightGradient.apply(weight, x.detach(), shape, transposed) if weight.requires_grad else None
    return WinogradConvolution.apply(x, weight_gradient, weight, transformed, transposed)


class WinogradConvolution(torch.autograd.Function):
    """The convolution; the input's gradient is its transpose, and the weight's is left to `WeightGradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _: Tensor | None, *convolution: Any) -> Tensor:
        """The convolution of `x`; the second argument is where the result's gradient is handed on to."""
        ctx.weight, ctx.transformed, ctx.transposed = convolution
        return convolve(x, ctx.transformed.get(ctx.transposed))

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
    def forward(ctx: Any, weight: Tensor, x: Tensor, shape: tuple[int, ...], transposed: bool) -> Tensor:
        """Zeros in the result's `shape` without its memory."""
        ctx.save_for_backward(x)
        ctx.weight_shape, ctx.transposed = weight.shape, transposed
        return x.new_zeros(()).expand(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The weight's gradient."""
        (x,) = ctx.saved_tensors
        data, grad = (grad, x) if ctx.transposed else (x, grad)
        return conv2d_weight(data, ctx.weight_shape, grad, padding=1), None, None, None


def convolve(x: Tensor, transform: Tensor) -> Tensor:
    """The convolution of `x`, shape (B, in, H, W), H and W divisible by 4, with a `TransformedWeight`'s transform."""
    batch_size, _, height, width = x.shape
    rows, columns = height // 4, width // 4
    padded = pad(x)
    result = x.new_empty(batch_size, rows, 4, columns, 4, transform.shape[2])
    images_at_once = max(1, TILES_AT_ONCE // (rows * columns))
    rows_at_once = min(rows, max(1, TILES_AT_ONCE // columns))
    work = Workspace(images_at_once * rows_at_once * columns, transform)
    for image in range(0, batch_size, images_at_once):
        for row in range(0, rows, rows_at_once):
            part = result[image : image + images_at_once, row : row + rows_at_once]
            work.convolve(padded[image : image + images_at_once, 4 * row :], part)
    return result.view(batch_size, height, width, -1).permute(0, 3, 1, 2)


def pad(x: Tensor) -> Tensor:
    """`x`, shape (B, C, H, W), with a border of zeros and the channels last, (B, H + 2, W + 2, C)."""
    batch_size, channels, height, width = x.shape
    padded = x.new_empty(batch_size, height + 2, width + 2, channels)
    padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    for border in (padded[:, 0], padded[:, -1], padded[:, :, 0], padded[:, :, -1]):
        border.zero_()
    return padded


class Workspace:
    """Memory for the transforms of some tiles, used again for the next: fresh memory costs as much as the work.

    Args:
        num_tiles: At most.
        transform: Of the weight.
    """

    def __init__(self, num_tiles: int, transform: Tensor) -> None:
        _, num_in, num_out = transform.shape
        self.transform = transform
        self.tiles, self.half, self.data = (transform.new_empty(36 * num_tiles * num_in) for _ in range(3))
        self.products, self.half_values = (transform.new_empty(n * num_tiles * num_out) for n in (36, 24))
        self.values = transform.new_empty(16 * num_tiles * num_out)

    def convolve(self, padded: Tensor, result: Tensor) -> None:
        """Fill `result`, shape (B, rows, 4, columns, 4, out), from `padded`, (B, >= 4 rows + 2, 4 columns + 2, in)."""
        images, rows, _, columns, _, num_out = result.shape
        num_in, num_tiles = padded.shape[3], images * rows * columns
        by_image, by_row, by_column, by_channel = padded.stride()
        tiles = first(self.tiles, 6, 6, images, rows, columns, num_in)
        tiles.copy_(
            padded.as_strided(
                tiles.shape,
                (by_row, by_column, by_image, 4 * by_row, 4 * by_column, by_channel),
                padded.storage_offset(),
            )
        )
        # down the columns of each tile, along its rows; per place in the tile a product over channels; and back
        half = torch.mm(DATA, tiles.view(6, -1), out=first(self.half, 6, 6 * num_tiles * num_in))
        data = first(self.data, 6, 6, num_tiles * num_in)
        torch.bmm(DATA.expand(6, 6, 6), half.view(6, 6, -1), out=data)
        products = first(self.products, 36, num_tiles, num_out)
        torch.bmm(data.view(36, num_tiles, num_in), self.transform, out=products)
        half = torch.mm(RESULT, products.view(6, -1), out=first(self.half_values, 4, 6 * num_tiles * num_out))
        values = first(self.values, 4, 4, num_tiles * num_out)
        torch.bmm(RESULT.expand(4, 4, 6), half.view(4, 6, -1), out=values)
        result.copy_(values.view(4, 4, images, rows, columns, num_out).permute(2, 3, 0, 4, 1, 5))


def first(memory: Tensor, *shape: int) -> Tensor:
    """The beginning of `memory`, one-dimensional, in this shape."""
    return memory[: math.prod(shape)].view(shape)


class WinogradConvolutions(TorchFunctionMode):
    """Inside, convolutions that gain by it are done by Winograd's algorithm; all others are PyTorch's, as ever.

    Those gain that are of float32 tensors on a CPU, 3x3, of stride and padding 1, with at least `MIN_CHANNELS` channels
    on both sides and a height and width divisible by 4. Transforms of a weight are kept as long as the weight, and made
    anew when it changes. Not for compiled networks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.transformed: Any = WeakIdKeyDictionary()

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
            transformed = self.transformed[weight] = TransformedWeight(weight)
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
