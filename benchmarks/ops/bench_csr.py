"""Graph building: edge list to CSR, and the transpose, against scipy, torch.sort and torch_sparse."""

import torch

import sparsegnn  # noqa: F401

ops = torch.ops.sparsegnn


def cases() -> list[dict]:
    return [
        dict(op=op, nodes=nodes, edges=edges, order=order, quick=edges == 500_000)
        for op in ("from_edges", "transpose")
        for nodes, edges in ((3_000, 10_000), (50_000, 500_000), (170_000, 2_300_000))
        for order in (("shuffled", "by_source") if op == "from_edges" else ("by_target",))
    ]


def inputs(case: dict) -> dict:
    g = torch.Generator().manual_seed(0)
    target, source = (torch.randint(case["nodes"], (case["edges"],), generator=g) for _ in range(2))
    if case["order"] == "by_source":
        order = torch.argsort(source * case["nodes"] + target)
        target, source = target[order], source[order]
    crow, col, _ = ops.csr_from_edges(target, source, case["nodes"], case["nodes"])
    return dict(target=target, source=source, crow=crow, col=col, nodes=case["nodes"])


def ours(case: dict):
    i = inputs(case)
    if case["op"] == "from_edges":
        return lambda: ops.csr_from_edges(i["target"], i["source"], i["nodes"], i["nodes"])
    return lambda: ops.csr_transpose(i["crow"], i["col"], i["nodes"])


def baselines(case: dict) -> dict:
    import scipy.sparse

    i = inputs(case)
    n, edges = i["nodes"], torch.arange(case["edges"], dtype=torch.int32)
    if case["op"] == "from_edges":
        pair = (i["target"].numpy(), i["source"].numpy())
        found = {
            "scipy": lambda: scipy.sparse.coo_matrix((edges.numpy(), pair), shape=(n, n)).tocsr(),
            "torch_sort": lambda: torch.sort(i["target"] * n + i["source"], stable=True),
        }
    else:
        a = scipy.sparse.csr_matrix((edges.numpy(), i["col"].numpy(), i["crow"].numpy()), shape=(n, n))
        found = {
            "scipy": lambda: a.tocsc(),
            "torch_sort": lambda: torch.sort(i["col"], stable=True),
        }
    try:
        from torch_sparse import SparseTensor
    except ImportError:
        return found
    if case["op"] == "from_edges":
        found["torch_sparse"] = lambda: SparseTensor(row=i["target"], col=i["source"], sparse_sizes=(n, n))
    else:
        found["torch_sparse"] = lambda: SparseTensor(
            rowptr=i["crow"].long(), col=i["col"].long(), sparse_sizes=(n, n)
        ).storage.csr2csc()
    return found


def work(case: dict) -> dict:
    """Bytes that any stable sort must move: read the list once, write crow, col and perm once."""
    given = 16 if case["op"] == "from_edges" else 8
    return dict(flop=0, bytes=case["edges"] * (given + 8) + 4 * case["nodes"])
