"""Methods that learn which weights stay: a score for each weight, trained by the controller's own optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn.controllers.distributions import allocate
from sparsegnn.controllers.pruning.straight_through import StraightThrough
from sparsegnn.controllers.settings import check_names, check_number, check_tensors, shown
from sparsegnn.nn import SparseLinear
from sparsegnn.pattern import check_sparsity


class Scored(StraightThrough):
    """Base of methods with a score for each weight: they define what scores begin with, and their gradient.

    Scores are float32, or float64 where weights are. Their optimizer makes a step after each one of yours; its state is
    in ``state_dict``.

    Args:
        sparsity: of all layers together at the end.
        distribution: ``"global"``, where the scores of all layers compete, ``"erk"``, ``"er"``, ``"uniform"``, or
            ``{name: sparsity}``.
        lr: of the scores.
        model, optimizer, start_at, stop_at, seed: as for :class:`StraightThrough`.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, sparsity: float = 0.9,
                 distribution: str | Mapping[str, float] = "global", lr: float = 0.01, start_at: int = 0,
                 stop_at: int | None = None, seed: int = 0):  # fmt: skip
        self.sparsity, self.distribution = check_sparsity(sparsity, self._name), distribution
        self.lr = float(check_number(self._name, "lr", lr, 0, 1e31))
        super().__init__(model, optimizer, start_at=start_at, stop_at=stop_at, seed=seed)

    def begin(self) -> None:
        shapes = {name: (x.out_features, x.in_features) for name, x in self.layers.items()}
        is_global = self.distribution == "global"
        self.final = None if is_global else allocate(shapes, self.sparsity, self.distribution, op=self._name)
        self.scores: dict[str, Tensor] = {}  # of the layers that are masked, [out * in]
        self.scorer: torch.optim.Optimizer | None = None
        super().begin()

    # --- to override ---

    def first_scores(self, name: str, layer: SparseLinear) -> Tensor:
        """[out, in]: what the scores of a layer begin with."""
        raise NotImplementedError(f"{self._name} must define first_scores()")

    def score_gradient(self, name: str, gradient: Tensor) -> Tensor:
        """[out * in] from the gradient of the effective weights."""
        return gradient * self.latent[name]

    def make_scorer(self, scores: list[Tensor]) -> torch.optim.Optimizer:
        """The optimizer of the scores."""
        return torch.optim.Adam(scores, lr=self.lr)

    def score_lr(self, step: int) -> float:
        """The learning rate of the scores in the step after ``step``."""
        return self.lr

    # --- for methods ---

    def budgets(self, names: list[str], share: float) -> list[tuple[list[str], int]]:
        """Layers that compete, and how many weights they keep together when that share of all pruning is done."""
        size = {name: self.latent[name].numel() for name in names}
        if self.final is not None:
            return [([name], n - round((n - self.final[name]) * share)) for name, n in size.items()]
        total = sum(size.values())
        return [(names, total - round((total - round((1 - self.sparsity) * total)) * share))]

    def best(self, names: list[str], share: float) -> dict[str, Tensor]:
        """Masks of the highest scores, as many as :meth:`budgets` says."""
        groups = self.budgets(names, share)
        return {k: m for group, n in groups for k, m in highest({k: self.scores[k] for k in group}, n).items()}

    # --- what the frame calls ---

    @torch.no_grad()
    def take_over(self) -> None:
        super().take_over()
        for name in self.latent:
            dtype = torch.promote_types(self.latent[name].dtype, torch.float32)
            self.scores[name] = self.first_scores(name, self.layers[name]).to(dtype).flatten()
        self._make_scorer()

    def weight_gradient(self, name: str, gradient: Tensor, scale: float | Tensor) -> Tensor:
        mine = gradient if isinstance(scale, float) else gradient / scale
        mine = mine.neg() if any(group.get("maximize") for group in self.optimizer.param_groups) else mine
        self.scores[name].grad = self.score_gradient(name, mine).to(self.scores[name])
        return self.trained(name, gradient)

    def trained(self, name: str, gradient: Tensor) -> Tensor:
        """What the optimizer gets for the latent weights: their gradient in the product with the mask."""
        return gradient * self.factor[name]

    def learn(self) -> None:
        if self.scorer is not None and self.scores:
            for group in self.scorer.param_groups:
                group["lr"] = self.score_lr(self.step - 1)
            self.scorer.step()
            self.forget(None)

    def forget(self, name: str | None) -> None:
        for scores in self.scores.values():
            scores.grad = None
        if name in self.scores:
            self.scorer.state.pop(self.scores.pop(name), None)
            self.scorer = self.scorer if self.scores else None

    # --- checkpoints ---

    def extra_state(self) -> dict:
        moments = {name: self.scorer.state.get(t, {}) for name, t in self.scores.items()}
        copies = {name: {k: t.clone() for k, t in state.items()} for name, state in moments.items()}
        return {**super().extra_state(), "scores": {k: t.clone() for k, t in self.scores.items()}, "moments": copies}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        op, names = self._name, self._names_in(state)
        kinds = {name: self.layers[name].values for name in names}
        like = {
            name: t.new_empty(t.numel(), dtype=torch.promote_types(t.dtype, torch.float32)) for name, t in kinds.items()
        }
        scores = check_tensors(op, "scores", state, like)
        moments = {}
        for name, found in check_names(op, "moments", state, names).items():
            if not isinstance(found, Mapping):
                raise TypeError(f"{op}: state['moments']['{name}'] must be a dict, got {type(found).__name__}")
            for key, t in found.items():
                if not isinstance(t, Tensor) or t.shape not in ((), like[name].shape):
                    raise ValueError(f"{op}: state['moments']['{name}']['{key}'] must be one number or "
                                     f"{list(like[name].shape)}, got {shown(t)}")  # fmt: skip
            moments[name] = {k: t.clone() if t.dim() == 0 else t.to(like[name], copy=True) for k, t in found.items()}
        mask = super().read_state(state)

        def apply() -> None:
            self.scores = scores
            self._make_scorer()
            if scores:
                self.scorer.state.update({scores[name]: found for name, found in moments.items() if found})
            mask()

        return apply

    # --- inner works ---

    def _make_scorer(self) -> None:
        self.scorer = self.make_scorer(list(self.scores.values())) if self.scores else None

    def _follow(self, name: str) -> None:
        super()._follow(name)
        scores, values = self.scores[name], self.layers[name].values
        if scores.device != values.device:
            scores.data, scores.grad = scores.to(values.device), None
            state = self.scorer.state.get(scores, {})
            state.update({k: t.to(values.device) for k, t in state.items() if t.dim()})


def highest(scores: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Masks of the ``n`` highest scores of all layers together, and at least one of each; ties to the earlier.

    Without waiting for a GPU; NaN is lowest.
    """
    each = [t.nan_to_num(float("-inf"), float("inf"), float("-inf")).flatten() for t in scores.values()]
    flat = torch.cat([t.index_fill(0, t.argmax(0, keepdim=True), float("inf")) for t in each])
    n = min(max(n, len(each)), flat.numel())
    bar = flat.topk(n, sorted=False).values.amin()
    above, tied = flat > bar, flat == bar
    mask = above | (tied & (tied.cumsum(0) <= n - above.sum()))
    return dict(zip(scores, mask.split([t.numel() for t in each]), strict=True))
