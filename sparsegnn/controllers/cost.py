"""Training cost of a method relative to dense, in floating-point operations of the weight layers.

A dense step costs 3 (forward, gradient of the input, gradient of the weight), a sparse one 3 (1 - sparsity).
"""

from sparsegnn.pattern import check_sparsity


def step_cost(sparsity: float, update_every: int | None = None) -> float:
    """Mean cost of a training step over that of a dense step.

    ``update_every`` is the number of sparse steps per update step with a dense weight gradient (RigL); None means that
    the method never needs one (static, SET).
    """
    kept = 1 - check_sparsity(sparsity, "step_cost")
    if update_every is None:
        return kept
    return (3 * kept * update_every + 2 * kept + 1) / (3 * (update_every + 1))


def train_and_prune_ratio(sparsity: float, *, dense: int = 30, retrain: int = 10, sparse: int = 40) -> float:
    """Cost of ``dense`` dense epochs and ``retrain`` sparse ones, over that of ``sparse`` epochs of sparse training."""
    kept = 1 - check_sparsity(sparsity, "train_and_prune_ratio")
    return (dense + retrain * kept) / (sparse * kept)
