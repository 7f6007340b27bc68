"""Sparse training written apart from the project, from the papers: dense weights, boolean masks, sorts in numpy.

Imports nothing of sparsegnn. What is agreed on: ties go to the lower index, a dropped weight may return, the random
numbers of SET are torch's after a hash of seed, step and layer, and a new weight's optimizer state is a fresh one.
"""

import hashlib
import math

import numpy as np
import torch
from torch import nn


def block_of(pattern: str) -> tuple[int, int]:
    kind, _, size = pattern.partition(":")
    return {"grouped": lambda: (int(size), 1), "block": lambda: tuple(map(int, size.split("x")))}.get(
        kind, lambda: (1, 1)
    )()


def sums(matrix: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """[M / height, K / width] sums over blocks."""
    (m, k), (h, w) = matrix.shape, block
    return matrix.reshape(m // h, h, k // w, w).sum((1, 3))


def spread(grid: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    return np.kron(grid, np.ones(block, dtype=bool))


def best(candidates: np.ndarray, score: np.ndarray, n: int) -> np.ndarray:
    """The n of some flat indices with the highest score, ties to the lower index."""
    return candidates[np.lexsort((candidates, -score[candidates]))][:n]


def exchange(active: np.ndarray, drop: np.ndarray, grow: np.ndarray, n: int) -> np.ndarray:
    """Without the n active entries of lowest ``drop``, with the n others of highest ``grow``; all flat."""
    new = np.zeros_like(active)
    new[best(np.flatnonzero(active), drop, active.sum() - n)] = True
    new[best(np.flatnonzero(~new), grow, n)] = True
    return new


def erk(shapes: list[tuple[int, int]], sparsity: float) -> list[int]:
    """Weights of each layer in proportion to M + K (density to (M + K) / (M K)), full ones taken out first."""
    kept = (1 - sparsity) * sum(m * k for m, k in shapes)
    full = [False] * len(shapes)
    while True:
        rest = kept - sum(m * k for (m, k), f in zip(shapes, full, strict=True) if f)
        share = rest / max(1, sum(m + k for (m, k), f in zip(shapes, full, strict=True) if not f))
        over = [f or share * (m + k) > m * k for (m, k), f in zip(shapes, full, strict=True)]
        if over == full:
            return [m * k if f else max(1, round(share * (m + k))) for (m, k), f in zip(shapes, full, strict=True)]
        full = over


class Schedule:
    """When a method moves weights, and how many weights each layer has after a step."""

    def __init__(self, method, every, stop, fraction, sparsity, shapes, pattern):
        self.method, self.every, self.stop, self.fraction = method, every, stop, fraction
        self.pattern, self.block, self.shapes = pattern, block_of(pattern), shapes
        self.final = erk(shapes, sparsity)

    def due(self, step: int) -> bool:
        if self.method == "StaticSparse" or step <= 0:
            return False
        if self.method == "GradualMagnitude":
            return step == self.stop or (step < self.stop and step % self.every == 0)
        return step < self.stop and step % self.every == 0

    def moving(self, step: int, active: int) -> int:
        return int(self.fraction / 2 * (1 + math.cos(math.pi * step / self.stop)) * active)

    def entries(self, i: int, step: int, active: int) -> int:
        """Pattern entries that gradual magnitude pruning leaves of the active ones of layer i."""
        (m, k), size = self.shapes[i], math.prod(self.block)
        keep = m * k - round((m * k - self.final[i]) * (1 - (1 - step / self.stop) ** 3))
        if keep >= active * size:
            return active
        if self.pattern == "fan_in":
            return m * max(1, round(keep / m))
        return max(1, round(keep * active / (active * size)))

    def counts(self, start: list[int], step: int) -> list[int]:
        """Weights of all layers after ``step`` steps from these."""
        size, now = math.prod(self.block), list(start)
        for s in range(1, step + 1):
            if self.method == "GradualMagnitude" and self.due(s):
                now = [self.entries(i, s, n // size) * size for i, n in enumerate(now)]
        return now


class Masked:
    """Dense layers with tanh between them, trained with masks."""

    def __init__(self, weights, biases, masks, names, schedule, seed, make_optimizer, make_scheduler):
        self.linears, self.masks = [], [m.copy() for m in masks]
        for weight, bias in zip(weights, biases, strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
            linear.weight.data, linear.bias.data = torch.from_numpy(weight.copy()), torch.from_numpy(bias.copy())
            self.linears.append(linear)
        self.optimizer = make_optimizer([p for m in self.linears for p in m.parameters()])
        self.scheduler = make_scheduler(self.optimizer)
        self.names, self.schedule, self.seed, self.steps = names, schedule, seed, 0

    def step(self, batches) -> None:
        self.optimizer.zero_grad()
        for x, y in batches:
            for i, m in enumerate(self.linears):
                x = m(torch.tanh(x) if i else x)
            (x - y).square().mean().backward()
        gradients = [m.weight.grad.abs().numpy().copy() for m in self.linears]
        for m, mask in zip(self.linears, self.masks, strict=True):
            m.weight.grad *= torch.from_numpy(mask)
        self.optimizer.step()
        self.steps += 1
        if self.schedule.due(self.steps):
            for i, gradient in enumerate(gradients):
                self.move(i, self.random(i) if self.schedule.method == "SET" else gradient)
        if self.scheduler is not None:
            self.scheduler.step()

    def random(self, i: int) -> np.ndarray:
        digest = hashlib.blake2b(f"{self.seed}/{self.steps}/{self.names[i]}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        return torch.rand(self.masks[i].shape, generator=generator).double().numpy()

    def move(self, i: int, score: np.ndarray) -> None:
        weight, block, old = self.linears[i].weight, self.schedule.block, self.masks[i]
        active = sums(old, block) > 0
        magnitude, score = sums(np.abs(weight.detach().numpy()) * old, block), sums(score, block)
        new = spread(self.choose(i, active, magnitude, score), block)
        with torch.no_grad():
            alive = torch.from_numpy(new & old)
            weight *= alive
            for key, slot in self.optimizer.state[weight].items():
                if torch.is_tensor(slot) and slot.shape == weight.shape:
                    slot[~alive] = self.fresh(key)
        self.masks[i] = new

    def choose(self, i, active, magnitude, score) -> np.ndarray:
        schedule, shape = self.schedule, active.shape
        if schedule.method == "GradualMagnitude":
            left = schedule.entries(i, self.steps, int(active.sum()))
            score, n = np.zeros(shape), int(active.sum()) - left
        else:
            n = schedule.moving(self.steps, int(active.sum()))
        if schedule.pattern == "fan_in":
            groups, each = active, np.full(shape[0], n // shape[0])
        elif schedule.pattern == "2:4":
            groups = active.reshape(-1, 4)
            lowest = np.where(groups, magnitude.reshape(-1, 4), np.inf).min(1)
            each = np.ones(len(groups), dtype=int)
            each[best(np.arange(len(groups)), lowest, max(0, len(groups) - n))] = 0
        else:
            groups, each = active.reshape(1, -1), [n]
        rows = zip(groups, magnitude.reshape(groups.shape), score.reshape(groups.shape), each, strict=True)
        pick = prune if schedule.method == "GradualMagnitude" else exchange
        return np.stack([pick(*row) for row in rows]).reshape(shape)

    def fresh(self, key: str) -> float:
        group = self.optimizer.param_groups[0]
        if isinstance(self.optimizer, torch.optim.Adagrad):
            return group["initial_accumulator_value"]
        return group["lr"] if key == "step_size" else 0.0


def prune(active, drop, _, n) -> np.ndarray:
    new = np.zeros_like(active)
    new[best(np.flatnonzero(active), drop, active.sum() - n)] = True
    return new
