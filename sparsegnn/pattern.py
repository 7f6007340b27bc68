"""Where the weights of a sparse layer are: index tensors and nothing else.

A pattern of a weight matrix [M, K] is ``crow`` [M+1] and ``col`` [nnz], both int32, columns strictly ascending within
a row. Its transpose is ``ccol`` [K+1], ``row`` [nnz], ``perm`` [nnz]: ``perm[t]`` is the position in ``(crow, col)``
of entry t of the transpose. Everything here is plain PyTorch and also runs on the meta device.

Patterns by name: ``"unstructured"``; ``"fan_in"``, the same number of inputs for every output (none for those that
SRigL ablates); ``"2:4"``, two of every four consecutive inputs; ``"grouped:8"`` (4, 8, 16), consecutive outputs share
their inputs; ``"block:16x16"`` (16, 32), dense blocks. The last two are patterns over blocks [height, width]:
``(crow, col)`` is that of the [M / height, K / width] matrix of blocks, and values are held block after block,
row-major inside a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

#: name -> (height, width) of the blocks that exist or do not
BLOCKS = {
    "unstructured": (1, 1),
    "fan_in": (1, 1),
    "2:4": (1, 1),
    "grouped:4": (4, 1),
    "grouped:8": (8, 1),
    "grouped:16": (16, 1),
    "block:16x16": (16, 16),
    "block:32x32": (32, 32),
}
PATTERNS = tuple(BLOCKS)
#: every output has as many inputs
REGULAR = ("fan_in", "2:4")


def check_sparsity(sparsity: float, op: str, kind: str = "unstructured") -> float:
    """``sparsity`` if it is a fraction of zeros in [0, 1); NaN, 1.0 and negative numbers raise ValueError.

    So does all but 0.5 for the pattern ``"2:4"``.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise TypeError(f"{op}: sparsity must be a number in [0, 1), got {type(sparsity).__name__}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"{op}: sparsity must be in [0, 1), got {sparsity}")
    if kind == "2:4" and sparsity != 0.5:
        raise ValueError(
            f"{op}: sparsity must be 0.5 for pattern '2:4', got {sparsity}; pass sparsity=0.5 or choose another pattern"
        )
    return float(sparsity)


def check_kind(pattern: str, op: str) -> str:
    """``pattern`` if it is the name of a supported pattern, else ValueError."""
    if pattern not in PATTERNS:
        raise ValueError(f"{op}: pattern must be one of {', '.join(map(repr, PATTERNS))}, got {pattern!r}")
    return pattern


def block_grid(rows: int, cols: int, kind: str, op: str) -> tuple[int, int]:
    """Blocks along both sides of a [rows, cols] matrix; sizes that blocks do not divide raise ValueError."""
    height, width = BLOCKS[check_kind(kind, op)]
    multiple = 4 if kind == "2:4" else width
    for what, size, step in (("rows (outputs)", rows, height), ("columns (inputs)", cols, multiple)):
        if size % step:
            raise ValueError(
                f"{op}: a weight of pattern {kind!r} must have a multiple of {step} {what}, got {size}; choose another "
                "width or pattern, or leave this layer out (sparsify(..., exclude=[name]))"
            )
    return rows // height, cols // width


def count_kept(rows: int, cols: int, sparsity: float, kind: str = "unstructured") -> int:
    """Number of weights left of a [rows, cols] matrix: rounded to the nearest, at least one (per row for "fan_in").

    A multiple of the size of a block, where the pattern has blocks.
    """
    if kind in REGULAR:
        return rows * count_kept(1, cols, sparsity)
    if BLOCKS[kind] != (1, 1):
        size = math.prod(BLOCKS[kind])
        return size * count_kept(*block_grid(rows, cols, kind, "count_kept"), sparsity)
    return max(1, round((1 - sparsity) * rows * cols))


def random_pattern(
    rows: int,
    cols: int,
    *,
    nnz: int | None = None,
    sparsity: float | None = None,
    kind: str = "unstructured",
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """``(crow, col)`` with exactly ``nnz`` positions (or those that ``sparsity`` leaves), uniformly at random.

    ``kind="fan_in"`` gives every row the same number of columns, so ``nnz`` must be a multiple of ``rows``; from a
    sparsity that number is rounded to the nearest, at least one. ``kind="2:4"`` has half of all positions. Kinds with
    blocks: ``nnz`` weights in whole blocks, and the result is a pattern over blocks. Drawn on the CPU (or the
    generator's device), so a seed means the same pattern on every device.
    """
    op = "random_pattern"
    if rows < 1 or cols < 1:
        raise ValueError(f"{op}: rows and cols must be positive, got {rows} and {cols}")
    if (nnz is None) == (sparsity is None):
        raise ValueError(f"{op}: exactly one of nnz and sparsity must be given")
    fan_in = check_kind(kind, op) == "fan_in"
    rows, cols = block_grid(rows, cols, kind, op)
    if kind == "2:4":
        check_sparsity(0.5 if sparsity is None else sparsity, op, kind)
        nnz = _half(rows * cols, nnz, op)
        fours = random_pattern(rows * cols // 4, 4, nnz=nnz, kind="fan_in", generator=generator, device=device)
        return _of_fours(fours[1], rows, cols)
    if nnz is None:
        nnz = count_kept(rows, cols, check_sparsity(sparsity, op), "fan_in" if fan_in else "unstructured")
    else:
        nnz = whole_blocks(nnz, kind, op)
    if not 1 <= nnz <= rows * cols:
        raise ValueError(f"{op}: nnz must be in [1, {rows * cols}], got {nnz}")
    if fan_in and nnz % rows:
        raise ValueError(f"{op}: nnz must be a multiple of {rows} rows for pattern 'fan_in', got {nnz}")
    device = torch.get_default_device() if device is None else torch.device(device)
    if device.type == "meta":
        empty = {"dtype": torch.int32, "device": device}
        return torch.empty(rows + 1, **empty), torch.empty(nnz, **empty)
    source = generator.device if generator is not None else torch.device("cpu")
    if fan_in:
        keys = torch.rand(rows, cols, generator=generator, device=source)
        col = keys.topk(nnz // rows, dim=1, sorted=False).indices.sort(dim=1).values.flatten()
        crow = torch.arange(0, nnz + 1, nnz // rows, device=source)
    else:
        linear = torch.randperm(rows * cols, generator=generator, device=source)[:nnz].sort().values
        crow, col = _from_linear(linear, rows, cols)
    return crow.to(device, torch.int32), col.to(device, torch.int32)


def whole_blocks(nnz: int, kind: str, op: str) -> int:
    """Number of blocks that hold ``nnz`` weights."""
    size = math.prod(BLOCKS[kind])
    if nnz % size:
        raise ValueError(f"{op}: nnz must be a multiple of {size} for pattern {kind!r}, got {nnz}")
    return nnz // size


def from_mask(mask: Tensor, kind: str = "unstructured") -> tuple[Tensor, Tensor]:
    """``(crow, col)`` of the nonzero entries of ``mask`` [M, K], or of the blocks that have one.

    For ``"2:4"`` two of every four entries of a row must be nonzero, else ValueError.
    """
    if mask.dim() != 2:
        raise ValueError(f"from_mask: mask must have shape [M, K], got {list(mask.shape)}")
    block_grid(*mask.shape, kind, "from_mask")
    if BLOCKS[kind] != (1, 1):
        mask = tiles(mask, kind, "from_mask").ne(0).flatten(2).any(2)
    crow, col = _from_linear(mask.flatten().nonzero().squeeze(1), *mask.shape)
    if kind == "2:4" and not two_of_four(crow, col, mask.size(1)):
        raise ValueError(
            "from_mask: mask must have two nonzeros in every four inputs of each output (pattern '2:4'), got others; "
            "SparseLinear.from_dense(linear, sparsity=0.5, pattern='2:4') keeps the two largest weights of each four"
        )
    return crow, col


def from_dense_topk(weight: Tensor, nnz: int, kind: str = "unstructured") -> tuple[Tensor, Tensor]:
    """``(crow, col)`` of the ``nnz`` entries of ``weight`` [M, K] with the largest magnitude.

    Ties go to the lower index, NaN ranks lowest. ``kind="fan_in"`` selects ``nnz / M`` entries in every row, ``"2:4"``
    two of every four, half of all. Kinds with blocks select the blocks with the largest sum of magnitudes.
    """
    op = "from_dense_topk"
    if weight.dim() != 2:
        raise ValueError(f"{op}: weight must have shape [M, K], got {list(weight.shape)}")
    if BLOCKS[check_kind(kind, op)] != (1, 1):
        weight, nnz = tiles(weight.detach().abs(), kind, op).flatten(2).sum(2), whole_blocks(nnz, kind, op)
    rows, cols = weight.shape
    if kind == "2:4":
        block_grid(rows, cols, kind, op)
        fours = from_dense_topk(weight.reshape(-1, 4), _half(rows * cols, nnz, op), "fan_in")
        return _of_fours(fours[1], rows, cols)
    if not 1 <= nnz <= rows * cols:
        raise ValueError(f"{op}: nnz must be in [1, {rows * cols}], got {nnz}")
    if check_kind(kind, op) == "fan_in":
        if nnz % rows:
            raise ValueError(f"{op}: nnz must be a multiple of {rows} rows for pattern 'fan_in', got {nnz}")
        col = top(weight.detach().abs(), nnz // rows).sort(dim=1).values.flatten()
        crow = torch.arange(0, nnz + 1, nnz // rows, device=weight.device)
        return crow.int(), col.int()
    return _from_linear(top(weight.detach().abs().flatten(), nnz).sort().values, rows, cols)


def top(score: Tensor, k: int) -> Tensor:
    """Indices of the ``k`` highest scores along the last dimension; ties to the lower index, NaN lowest."""
    return score.neg().argsort(stable=True)[..., :k]  # argsort puts NaN last, whatever its sign


def top_mask(score: Tensor, count: Tensor) -> Tensor:
    """True at the ``count`` [M] highest of each row of ``score`` [M, K], which :func:`top` finds; -inf only if it must.

    Without sorting all: for weights of millions of entries. Waits for a GPU.
    """
    most = int(count.max()) if count.numel() else 0
    if most <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    score = score.nan_to_num(torch.finfo(score.dtype).min, torch.inf, -torch.inf)
    least = score.topk(most, dim=1).values.gather(1, (count - 1).clamp(min=0)[:, None])
    above, ties = score > least, score == least
    left = count - above.sum(1)  # below 0 in rows that take none
    return (above | (ties & (ties.cumsum(1) <= left[:, None]))) & (count > 0)[:, None]


def transpose(crow: Tensor, col: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(ccol, row, perm)``: the same positions, column by column."""
    perm = col.argsort(stable=True)
    row = rows_of(crow, col)[perm]
    count = torch.zeros(cols, dtype=torch.int32, device=col.device).index_add_(0, col, torch.ones_like(col))
    return _offsets(count), row.int(), perm.int()  # not bincount: that has no meta kernel


def rows_of(crow: Tensor, col: Tensor) -> Tensor:
    """Row of every entry, int64 [nnz]."""
    rows = torch.arange(crow.numel() - 1, device=crow.device)
    return rows.repeat_interleave(crow.diff(), output_size=col.numel())


def flat(crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """int64 position of every entry in the row-major matrix [M, cols]."""
    return rows_of(crow, col) * cols + col


def to_mask(crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """Boolean [M, K] that is true at the positions of the pattern."""
    mask = torch.zeros(crow.numel() - 1, cols, dtype=torch.bool, device=col.device)
    mask[rows_of(crow, col), col.long()] = True
    return mask


def tiles(matrix: Tensor, kind: str, op: str = "pattern") -> Tensor:
    """[M / height, K / width, height, width]: the blocks of ``matrix`` [M, K], a view where possible."""
    rows, cols = block_grid(*matrix.shape, kind, op)
    return matrix.reshape(rows, BLOCKS[kind][0], cols, BLOCKS[kind][1]).transpose(1, 2)


def block_sums(matrix: Tensor, kind: str) -> Tensor:
    """[M / height, K / width]: the sum over every block of ``matrix`` [M, K]."""
    rows, cols = block_grid(*matrix.shape, kind, "pattern")
    return matrix.reshape(rows, BLOCKS[kind][0], cols, BLOCKS[kind][1]).sum((1, 3))


def gather(matrix: Tensor, crow: Tensor, col: Tensor, kind: str) -> Tensor:
    """The values [nnz] of ``matrix`` [M, K] at the positions of a pattern of this kind."""
    return tiles(matrix, kind)[rows_of(crow, col), col.long()].flatten()


def rewire_rows_(col: Tensor, drop: Tensor, grow: Tensor, n: int | Tensor) -> Tensor:
    """Let every row drop ``n`` of its entries and grow ``n``: ``topology_`` row by row, with what that returns.

    For patterns with the same number of entries in every row, which keep it. ``drop`` [nnz], ``grow`` [M, K]. No size
    depends on ``n``, which may be a tensor [] or, for each row, [M, 1] and change between the replays of a CUDA graph.
    """
    rows, cols = grow.shape
    held, place = col.long().view(rows, -1), torch.arange(cols, device=col.device)
    each = held.size(1)
    kept = torch.zeros_like(grow, dtype=torch.bool)
    kept.scatter_(1, held.gather(1, top(drop.view(rows, -1), each)), (place[:each] < each - n).expand_as(held))
    best = grow.neg().argsort(dim=1, stable=True)  # NaN last
    best = best.gather(1, kept.gather(1, best).byte().argsort(dim=1, stable=True))  # the free ones first
    grown = torch.zeros_like(kept).scatter_(1, best, (place < n).expand_as(best))
    chosen = (kept | grown).byte().argsort(dim=1, descending=True, stable=True)[:, :each]
    slot = torch.arange(col.numel(), device=col.device).view_as(held)
    before = torch.full_like(grow, -1, dtype=torch.long).scatter_(1, held, slot)
    col.copy_(chosen.flatten())
    return before.gather(1, chosen).flatten().int()


def rewire_regular_(kind: str, col: Tensor, drop: Tensor, grow: Tensor, n: int | Tensor) -> Tensor:
    """The same of a pattern that has equal counts in rows, or fours, and keeps them: ``n`` entries in all, about.

    ``"fan_in"``: ``n // M`` of every row. ``"2:4"``: of the ``n`` fours that hold the lowest scores, at most all, each
    drops its lower one and grows one.
    """
    if kind == "fan_in":
        return rewire_rows_(col, drop, grow, n // grow.size(0))
    lowest = drop.view(-1, 2).amin(1)  # NaN where there is one
    fours = lowest.numel()
    moving = torch.arange(fours, device=col.device) >= fours - n
    each = torch.zeros(fours, dtype=torch.long, device=col.device).scatter_(0, top(lowest, fours), moving.long())
    inside = col % 4
    first = col - inside
    source = rewire_rows_(inside, drop, grow.reshape(-1, 4), each[:, None])
    col.copy_(first + inside)
    return source


def subset(crow: Tensor, col: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """``(crow, col)`` of the entries ``slots`` (ascending, int64) alone."""
    return torch.searchsorted(slots, crow.long()).int(), col[slots]


def mover(source: Tensor) -> Callable[[Tensor, float | Tensor], Tensor]:
    """``move(tensor, start)``: ``tensor[source]`` with ``start`` where ``source`` is -1, for several tensors.

    For anything held per weight, after the positions moved. ``tensor`` [nnz] may hold several weights per position: it
    then moves block by block.
    """
    index, new = source.clamp(min=0), source < 0

    def move(tensor: Tensor, start: float | Tensor = 0) -> Tensor:
        if tensor.numel() == source.numel():
            return tensor.reshape(-1).index_select(0, index).masked_fill_(new, start).view(tensor.shape)
        blocks = tensor.reshape(source.numel(), -1).index_select(0, index)
        return blocks.masked_fill_(new[:, None], start).view(tensor.shape)

    return move


def rearrange(tensor: Tensor, source: Tensor, start: float | Tensor = 0) -> Tensor:
    """:func:`mover` for one tensor."""
    return mover(source)(tensor, start)


def check_pattern(crow: Tensor, col: Tensor, rows: int, cols: int, op: str = "pattern") -> None:
    """Raise unless ``(crow, col)`` is a valid pattern of a [rows, cols] matrix. Reads the data: once per pattern."""
    for name, t in (("crow", crow), ("col", col)):
        if not isinstance(t, Tensor) or t.dtype != torch.int32:
            raise TypeError(f"{op}: {name} must be an int32 tensor, got {getattr(t, 'dtype', type(t).__name__)}")
        if t.dim() != 1:
            raise ValueError(f"{op}: {name} must have one dimension, got shape {list(t.shape)}")
    if crow.numel() != rows + 1:
        raise ValueError(f"{op}: crow must have shape [{rows + 1}], got {list(crow.shape)}")
    if crow.device != col.device:
        raise ValueError(f"{op}: crow and col must be on one device, got {crow.device} and {col.device}")
    if crow.is_meta:
        return
    first, last = crow[0].item(), crow[-1].item()
    if first != 0 or last != col.numel():
        raise ValueError(f"{op}: crow must start at 0 and end at {col.numel()}, got {first} and {last}")
    if (crow[1:] < crow[:-1]).any():  # not by differences, which wrap
        raise ValueError(f"{op}: crow must not decrease, got a row that ends before it begins")
    if col.numel() and not 0 <= col.min().item() <= col.max().item() < cols:
        raise ValueError(f"{op}: col must be in [0, {cols}), got [{col.min().item()}, {col.max().item()}]")
    linear = flat(crow, col, cols)
    if (linear.diff() <= 0).any():
        raise ValueError(f"{op}: col must ascend strictly within each row, got an unsorted or repeated column")


def check_regular(crow: Tensor, col: Tensor, cols: int, kind: str, op: str) -> None:
    """Raise unless a valid pattern keeps what its kind promises of every output."""
    if crow.is_meta or kind not in REGULAR:
        return
    if kind == "fan_in" and (count := crow.diff())[count > 0].unique().numel() > 1:
        raise ValueError(
            f"{op}: crow must give every output as many inputs, or none (pattern 'fan_in'), got other counts"
        )
    if kind == "2:4" and not two_of_four(crow, col, cols):
        raise ValueError(f"{op}: col must hold two of every four inputs of each output (pattern '2:4'), got others")


def check_even(crow: Tensor, op: str) -> None:
    """Raise where an output of a layer with constant fan-in has no inputs, as SRigL ablates some. Reads the data."""
    if crow.is_meta or not (empty := int((crow.diff() == 0).sum())):
        return
    raise ValueError(
        f"{op}: every output must have inputs (pattern 'fan_in'), got {empty} that were ablated: use SRigL"
    )


def two_of_four(crow: Tensor, col: Tensor, cols: int) -> bool:
    """Whether a valid pattern has two entries in every four consecutive columns of each row. Reads the data."""
    rows = crow.numel() - 1
    if cols % 4 or 2 * col.numel() != rows * cols:
        return False
    fours = torch.arange(rows * cols // 4, device=col.device) % max(cols // 4, 1)
    return bool((col.view(-1, 2) // 4 == fours[:, None]).all() and (crow.diff() == cols // 2).all())


def _half(size: int, nnz: int | None, op: str) -> int:
    if nnz not in (None, size // 2):
        raise ValueError(f"{op}: nnz must be {size // 2}, half of all, for pattern '2:4', got {nnz}")
    return size // 2


def _of_fours(col: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Pattern [rows, cols] of the columns that its fours keep, two each."""
    first = torch.arange(0, rows * cols, 4, dtype=torch.int32, device=col.device) % cols
    crow = torch.arange(0, rows * cols // 2 + 1, cols // 2, dtype=torch.int32, device=col.device)
    return crow, (first[:, None] + col.view(-1, 2)).flatten()


def _from_linear(linear: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Pattern of sorted positions ``row * cols + col``."""
    row = linear.div(cols, rounding_mode="floor")
    count = torch.zeros(rows, dtype=torch.int32, device=linear.device)
    count.index_add_(0, row, torch.ones_like(row, dtype=torch.int32))
    return _offsets(count), (linear - row * cols).int()


def _offsets(count: Tensor) -> Tensor:
    return torch.cat([count.new_zeros(1), count.cumsum(0, dtype=torch.int32)])
