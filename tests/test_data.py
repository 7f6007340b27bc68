"""Graph data: what loads, what is refused and with which words."""

import io
import json
import zipfile
import zlib

import numpy as np
import pytest
import torch

from sparsegnn import data

META = json.dumps({"format": data.FORMAT, "name": "tiny", "deduplicated": True})


def tiny(**changes) -> dict[str, np.ndarray]:
    """Arrays of a small valid graph; None removes one."""
    rng = np.random.default_rng(0)
    arrays = {
        "edge_index": np.array([[0, 1, 2, 3], [1, 0, 3, 2]], dtype=np.int32),
        "num_nodes": np.int64(10),
        "meta": np.array(META),
        "x": rng.random((10, 3), dtype=np.float32),
        "y": np.arange(10) % 2,
        **changes,
    }
    return {k: v for k, v in arrays.items() if v is not None}


def csr(**changes) -> dict[str, np.ndarray]:
    """The same with CSR features: row i holds i+1 at column i % 3."""
    arrays = {
        "x": None,
        "x_data": np.arange(1, 11, dtype=np.float32),
        "x_indices": np.arange(10, dtype=np.int32) % 3,
        "x_indptr": np.arange(11),
        "x_shape": np.array([10, 3]),
        **changes,
    }
    return tiny(**arrays)


@pytest.fixture
def save(tmp_path):
    def write(arrays):
        path = tmp_path / "graph.npz"
        np.savez_compressed(path, **arrays)
        return path

    return write


def test_dense_features(save):
    g = data.load(save(tiny()))
    assert (g.num_nodes, g.num_edges, g.num_features, g.num_classes, g.name) == (10, 4, 3, 2, "tiny")
    assert g.x.dtype == torch.float32 and g.edge_index.dtype == g.y.dtype == torch.int64
    assert torch.equal(g.x, torch.from_numpy(tiny()["x"]))  # dense features stay as they are
    assert torch.equal(g.train_mask ^ g.val_mask ^ g.test_mask, torch.ones(10, dtype=torch.bool))


def test_csr_features_are_row_normalised(save):
    g = data.load(save(csr()))
    assert torch.equal(g.x, torch.nn.functional.one_hot(torch.arange(10) % 3, 3).float())
    raw = data.load(save(csr()), normalize=False)
    assert torch.equal(raw.x.sum(1), torch.arange(1.0, 11.0))


def test_zero_feature_row_stays_zero(save):
    g = data.load(save(csr(x_data=np.array([0, *range(2, 11)], dtype=np.float32))))
    assert torch.equal(g.x[0], torch.zeros(3)) and g.x.isfinite().all()


def test_given_masks_and_edge_weight(save):
    masks = {f"{k}_mask": np.arange(10) % 3 == i for i, k in enumerate(("train", "val", "test"))}
    g = data.load(save(tiny(**masks, edge_weight=np.ones(4, dtype=np.float32))), split_seed=5)
    assert torch.equal(g.train_mask, torch.arange(10) % 3 == 0) and torch.equal(g.edge_weight, torch.ones(4))


def test_split_has_its_own_seed():
    y = np.where(np.arange(100) < 90, np.arange(100) % 3, -1)
    first, again, other = (data.random_split(y, seed) for seed in (0, 0, 1))
    assert all((first[k] == again[k]).all() for k in first) and (first["train_mask"] != other["train_mask"]).any()
    assert [int(m.sum()) for m in first.values()] == [54, 18, 18]
    assert not np.any(np.stack(list(first.values()))[:, y < 0])


BAD = [
    (tiny(edge_index=None), "array 'edge_index' is missing"),
    (tiny(edge_index=np.zeros((3, 4), dtype=np.int64)), r"array 'edge_index' must have shape \[2, \*\], got \[3, 4\]"),
    (tiny(edge_index=np.zeros((2, 4))), "array 'edge_index' must be integers, got float64"),
    (tiny(edge_index=np.array([[0, -1], [1, 0]])), "array 'edge_index' must be at least 0, got -1"),
    (tiny(edge_index=np.array([[0, 10], [1, 0]])), "array 'edge_index' must be below 10, got 10"),
    (tiny(edge_index=np.array([[0, 2**63], [1, 0]], dtype=np.uint64)), "array 'edge_index' must be below 10, got 922"),
    (tiny(num_nodes=np.int64(-3)), "array 'num_nodes' must be at least 1, got -3"),
    (tiny(num_nodes=np.arange(3)), r"array 'num_nodes' must have shape \[\], got \[3\]"),
    (tiny(num_nodes=np.int64(11)), r"array 'y' must have shape \[11\], got \[10\]"),
    (tiny(meta=None), "array 'meta' is missing"),
    (tiny(meta=np.array("{")), "array 'meta' must be JSON, got '{'"),
    (tiny(meta=np.array("[1]")), "array 'meta' must say format 'sparsegnn-graph-npz/1', got None"),
    (tiny(meta=np.array('{"format": "else/2"}')), "must say format 'sparsegnn-graph-npz/1', got 'else/2'"),
    (tiny(x=np.ones((9, 3))), r"array 'x' must have shape \[10, \*\], got \[9, 3\]"),
    (tiny(x=np.full((10, 3), np.nan)), "array 'x' must be finite, got 30 NaN or infinite"),
    (tiny(x=np.full((10, 3), 1e39)), "array 'x' must be finite, got 30 NaN or infinite"),  # beyond float32
    (tiny(x=np.full((10, 3), "a")), "array 'x' must be numbers, got <U1"),
    (tiny(x=np.ones((10, 0))), "array 'x' must have at least one column, got 0"),
    (tiny(y=np.arange(10) - 2), "array 'y' must be at least -1, got -2"),
    (tiny(y=np.full(10, -1)), "array 'y' must hold at least two classes, got 0"),
    (tiny(y=np.ones(10)), "array 'y' must be integers, got float64"),
    (tiny(edge_weight=np.ones(3)), r"array 'edge_weight' must have shape \[4\], got \[3\]"),
    (tiny(edge_weight=-np.ones(4)), "array 'edge_weight' must not be negative"),
    (tiny(train_mask=np.ones(10, dtype=bool)), "array 'val_mask' is missing"),
    (tiny(**{k: np.ones(10, dtype=bool) for k in ("train_mask", "val_mask", "test_mask")}), "not overlap"),
    (tiny(**{k: np.ones(10) for k in ("train_mask", "val_mask", "test_mask")}), "'train_mask' must be boolean"),
    (tiny(**{k: np.zeros(10, dtype=bool) for k in ("train_mask", "val_mask", "test_mask")}), "select at least one"),
    (csr(x=np.ones((10, 3))), "arrays 'x' and 'x_data' are both there"),
    (csr(x_indptr=np.arange(10)), r"array 'x_indptr' must have shape \[11\], got \[10\]"),
    (csr(x_indptr=np.arange(11) + 1), "array 'x_indptr' must be below 11, got 11"),
    (csr(x_indptr=np.array([0, 5, 3, *range(3, 11)])), "array 'x_indptr' must not decrease"),
    (csr(x_indptr=np.zeros(11, dtype=int)), "array 'x_indptr' must run from 0 to 10, got 0 to 0"),
    (csr(x_indices=np.full(10, 3)), "array 'x_indices' must be below 3, got 3"),
    (csr(x_indices=np.full(10, -1)), "array 'x_indices' must be at least 0, got -1"),
    (csr(x_indices=np.arange(9) % 3), r"array 'x_indices' must have shape \[10\], got \[9\]"),
    (csr(x_data=np.full(10, np.inf)), "array 'x_data' must be finite, got 10"),
    (csr(x_shape=np.array([9, 3])), "array 'x_shape' must start with the number of nodes 10, got 9"),
    (csr(x_shape=np.array([10, 10**9])), r"features must fit 2 GiB as dense float32, got 10 x 1000000000"),
    (csr(x_indptr=None), "array 'x_indptr' is missing"),
    (tiny(edge_time=np.arange(4)), "temporal graph"),
    (tiny(y=None, y_multi=np.ones((10, 4), dtype=np.uint8)), "multi-label set"),
    (tiny(y=None), "unlabelled set"),
    (tiny(x=None), "set without features"),
    (tiny(y=np.array([0, 1] + [-1] * 8)), "a split needs at least 5 labelled nodes, got 2"),
]


@pytest.mark.parametrize("arrays, message", BAD, ids=[m[:60] for _, m in BAD])
def test_bad_arrays_are_named(save, arrays, message):
    path = save(arrays)
    with pytest.raises(ValueError, match=message) as e:
        data.load(path)
    if "split" not in message:
        assert str(path) in str(e.value)


def test_pickles_are_never_loaded(tmp_path):
    path = tmp_path / "evil.npz"
    np.savez(path, **tiny(y=np.array([{"a": 1}] * 10, dtype=object)))
    with pytest.raises(ValueError, match="evil.npz: array 'y' holds pickled objects, which are never loaded"):
        data.load(path)
    path.write_bytes(__import__("pickle").dumps({"edge_index": 1}))
    with pytest.raises(ValueError, match=r"evil.npz: not an .npz file"):
        data.load(path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file(save, kept):
    path = save(tiny())
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"graph.npz: (file is truncated|not an .npz file)"):
        data.load(path)


def test_damaged_array(save):
    path = save(tiny(x=np.random.default_rng(0).random((10, 500))))
    with zipfile.ZipFile(path) as z:
        start = z.getinfo("x.npy").header_offset + 200
    content = bytearray(path.read_bytes())
    content[start : start + 400] = b"\0" * 400
    path.write_bytes(content)
    with pytest.raises(ValueError, match="array 'x' is truncated or damaged"):
        data.load(path)


def test_header_that_promises_too_much(save):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**7, 10**9)})
    path = save(tiny(x=None))
    with zipfile.ZipFile(path, "a") as z:
        z.writestr("x.npy", header.getvalue() + zlib.compress(b"x"))
    with pytest.raises(ValueError, match="graph.npz: array 'x' "):
        data.load(path)


def test_lookup(save, tmp_path, monkeypatch):
    save(tiny())
    monkeypatch.setenv("SPARSEGNN_DATA", str(tmp_path))
    assert data.load("graph").name == "tiny"
    monkeypatch.setenv("SPARSEGNN_DATA", "")
    (tmp_path / "data").mkdir()
    (tmp_path / "graph.npz").rename(tmp_path / "data" / "here.npz")
    monkeypatch.chdir(tmp_path)
    assert data.load("here").name == "tiny"
    for name, message in (("nowhere", "no set named 'nowhere'"), ("a/b.npz", "no such file"), ("", "empty string")):
        with pytest.raises(ValueError, match=message):
            data.load(name)


def test_download_without_network_says_so(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torch_geometric.datasets")

    def offline(*args):
        raise ConnectionError("network unreachable")

    monkeypatch.setattr(datasets, "Planetoid", offline)
    monkeypatch.setenv("SPARSEGNN_DATA", str(tmp_path))
    monkeypatch.setenv("SPARSEGNN_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="'cora' is no local file and downloading it failed.*network unreachable"):
        data.load("Cora")


def test_digits():
    pytest.importorskip("sklearn")
    g = data.load("digits")
    assert (g.num_nodes, g.num_features, g.num_classes) == (1797, 64, 10) and 0 <= g.x.min() and g.x.max() == 1
    source, target = g.edge_index
    assert g.num_edges == 19858  # ties between distances break by index, on any machine
    assert torch.bincount(target).min() >= 8 and not (source == target).any()
    key, back = source * 1797 + target, target * 1797 + source
    assert torch.equal(key.sort().values, back.sort().values) and key.unique().numel() == key.numel()
    assert (g.y[source] == g.y[target]).double().mean() > 0.9


def test_skewed_is_skewed_labelled_and_deterministic():
    g, again, other = (data.skewed(3000, 20, 5, 8, seed=s) for s in (1, 1, 2))
    assert torch.equal(g.edge_index, again.edge_index) and torch.equal(g.x, again.x)
    assert not torch.equal(g.x, other.x)
    source, target = g.edge_index
    degree = torch.bincount(target, minlength=3000).sort(descending=True).values.double()
    assert degree[:30].sum() / degree.sum() > 0.1  # the top 1 % of nodes holds over a tenth of the edges
    assert 10 < degree.mean() < 20 and not (source == target).any()
    same = (g.y[source] == g.y[target]).double().mean()
    assert 0.5 < same < 0.9 and torch.bincount(g.y).tolist() == [600] * 5
    with pytest.raises(ValueError, match="skewed: homophily is out of range, got 2"):
        data.skewed(100, homophily=2)


CLASSES = {"cora": 7, "citeseer": 6, "amazon_photo": 8, "facebook_pages": 4, "blogcatalog": 6, "coauthor_cs": 15}
REFUSED = {
    "ppi_14755": "multi-label",
    "pubmed_nofeat": "without features",
    "ego_twitter": "unlabelled",
    "metr_la_week": "unlabelled",
    "college_msg": "temporal",
    "patent_temporal": "temporal",
    "dblp3_snapshots": "temporal",
}


@pytest.mark.parametrize("name", CLASSES)
def test_real_graphs_load(graph_data_dir, name):
    g = data.load(graph_data_dir / f"{name}.npz")
    assert g.num_classes == CLASSES[name] and g.name == name
    sums = g.x.sum(1)
    assert torch.allclose(sums[sums != 0], torch.ones(()), atol=1e-4)
    if name == "cora":
        assert [int(m.sum()) for m in (g.train_mask, g.val_mask, g.test_mask)] == [140, 500, 1000]


@pytest.mark.parametrize("name", REFUSED)
def test_real_graphs_refused(graph_data_dir, name):
    with pytest.raises(ValueError, match=f"{name}.npz: .*{REFUSED[name]}"):
        data.load(graph_data_dir / f"{name}.npz")
