"""What a pair's score is worth that nothing was trained for: levels that tell whether a network learns anything."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sparsegnn.experiments.links.events import LinkSplit, Pairs


@lru_cache(maxsize=4)
def levels(links: LinkSplit) -> dict[str, float]:
    """AUC of scores of the test pairs by the past alone, each in any direction.

    ``preferential_attachment``: product of the numbers of neighbours; ``common_neighbours``: their number;
    ``recurrence``: number of events of the pair.
    """
    from scipy.sparse import csr_matrix
    from sklearn.metrics import roc_auc_score

    n, past, pairs = links.num_nodes, links.past, links.test
    events = csr_matrix((np.ones(past.num_events), (past.source, past.target)), shape=(n, n))
    events = (events + events.T).tocsr()
    near = (events > 0).astype(np.float64)
    degree = np.asarray(near.sum(1)).ravel()
    found = {
        "preferential_attachment": degree[pairs.source] * degree[pairs.target],
        "common_neighbours": _rows_of(near, near, pairs),
        "recurrence": np.asarray(events[pairs.source, pairs.target]).ravel(),
    }
    return {name: float(roc_auc_score(pairs.label, score)) for name, score in found.items()}


def _rows_of(a, b, pairs: Pairs, rows: int = 65536) -> np.ndarray:
    """The products of rows of ``a`` and rows of ``b``, for each pair, some at a time."""
    found = []
    for i in range(0, pairs.source.size, rows):
        u, v = pairs.source[i : i + rows], pairs.target[i : i + rows]
        found.append(np.asarray(a[u].multiply(b[v]).sum(1)).ravel())
    return np.concatenate(found)
