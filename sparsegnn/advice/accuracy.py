"""What is known of the accuracy that a lever costs, with its source. Nothing of it was measured on your data."""

from __future__ import annotations

from collections.abc import Iterable

from sparsegnn.advice.levers import Option

#: row of docs/methods.md -> points of test accuracy over dense: GCN on Cora, 2 layers of 64, 5 seeds
CORA = {"rigl": -0.94, "static": -5.0, "maxk": -2.4}
WHERE = "GCN of 2 x 64 on Cora, docs/methods.md"


def known(option: Option) -> str:
    """What is known of all levers of ``option``."""
    return "; ".join(accuracy([option]).values())


def accuracy(options: Iterable[Option]) -> dict[str, str]:
    """Lever -> a sentence, of those in ``options``."""
    said, rigl = {}, f"{CORA['rigl']:+.1f} points with RigL"
    for option in options:
        if option.sparsity:
            name = f"{round(100 * option.sparsity)} % sparse weights"
            if option.sparsity == 0.9:
                said[name] = f"{rigl}, {CORA['static']:+.1f} at fixed positions ({WHERE})"
            elif option.sparsity < 0.9:
                said[name] = f"not measured; less than 90 %, which costs {rigl} ({WHERE})"
            else:
                said[name] = f"not measured; more than 90 %, which costs {rigl} ({WHERE})"
        if option.sparsity and option.pattern != "unstructured":
            said[option.pattern] = "costs more on a first layer over bag-of-words features (docs of SparseLinear)"
        if option.maxk:
            said["MaxK"] = f"{CORA['maxk']:+.1f} points at 32 of 64 ({WHERE}); none at 32 of 256 in its paper"
        if option.bf16:
            said["bf16"] = "not measured; products are summed in fp32"
        if option.width != 1:
            said["a narrower net"] = "only training it tells"
    return dict(sorted(said.items()))
