"""Graph data: what loads, what is refused and with which words."""

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch

from sparsegnn import data
from sparsegnn.data import npz

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


def headed(fields: bytes, content: bytes = b"", version=(1, 0)) -> bytes:
    size = struct.pack("<H" if version == (1, 0) else "<I", len(fields) + 1)
    return b"\x93NUMPY" + bytes(version) + size + fields + b"\n" + content


def member(content: bytes, shape, descr="<f4", version=(1, 0)) -> bytes:
    """A member of an archive whose header says `shape` and `descr` of `content`."""
    return headed(repr({"descr": descr, "fortran_order": False, "shape": shape}).encode(), content, version)


def text(value: str) -> bytes:
    return member(value.encode("utf-32-le"), (), f"<U{len(value)}")


DEEP = "[" * 100_000
HOSTILE = {  # name: (array, its member, what is said)
    "deep JSON": ("meta", text(DEEP), r"'meta' must be JSON, got '\[\[\["),
    "deep JSON in the right format": ("meta", text(META[:-1] + f', "a": {DEEP}'), "'meta' must be JSON"),
    "a number of too many digits": ("meta", text(META[:-1] + f', "a": {"1" * 10_000}' + "}"), "'meta' must be JSON"),
    "meta that is no text": ("meta", member(b"\xff" * 8, (), "<U2"), "'meta' must be JSON, got what is no text"),
    "meta of 4 MB": ("meta", text(META + " " * 2**20), "'meta' must have at most 1048576 bytes, got 4"),
    "a name that is none": (
        "meta",
        text(META.replace('"tiny"', "[[]]")),
        r"'meta' must have a text as name, got \[\[\]\]",
    ),
    "no magic": ("x", b"0" * 120, "'x' is truncated or damaged: the magic string is not correct"),
    "no content": ("y", b"", "'y' is truncated or damaged: EOF"),
    "a pickle": ("y", pickle.dumps([1]), "'y' is truncated or damaged: the magic"),
    "an unknown version": ("x", member(bytes(120), (10, 3), version=(9, 0)), "'x' is truncated or damaged: ver"),
    "a header without end": ("x", b"\x93NUMPY\x01\0\xff\xff{", "'x' is truncated or damaged: EOF"),
    "a long header": (
        "x",
        member(bytes(120), (10, 3), "<f4" + " " * 20_000),
        "'x' is truncated or damaged: Header info",
    ),
    "a deep header": ("x", headed(b"(" * 4000), "'x' is truncated or damaged"),
    "a header of minus signs": ("x", headed(b"-" * 9000 + b"1"), "'x' is truncated or damaged"),
    "a header that calls": (
        "x",
        member(bytes(120), (10, 3)).replace(b"(10, 3)", b"exit(3)"),
        "'x' is truncated or dam",
    ),
    "a huge shape": ("x", member(bytes(9), (10, 2**62)), "features must fit 2 GiB"),
    "a huge shape of a vector": ("x", member(bytes(9), (2**62,)), r"'x' must have shape \[10, \*\], got \[4611"),
    "many edges": (
        "edge_index",
        member(bytes(99), (2, 2**50), "<i8"),
        "'edge_index' must be complete, .* got 99 of 18014",
    ),
    "a wrapped product": ("edge_index", member(b"", (2, 2**63), "<i8"), "'edge_index' must be complete, .* got 0 of"),
    "more data than the shape": ("y", member(bytes(88), (10,), "<i8"), "'y' must be complete, .* got 88 of 80 bytes"),
    "a negative shape": ("x", member(b"", (10, -3)), r"'x' must have shape \[10, \*\], got \[10, -3\]"),
    "two negative sizes": ("edge_index", member(bytes(128), (2, -8), "<i8"), r"'edge_index' must have shape \[2, \*\]"),
    "no dimension": ("x", member(bytes(4), ()), r"'x' must have shape \[10, \*\], got \[\]"),
    "many dimensions": ("x", member(bytes(4), (1,) * 70), r"'x' must have shape \[10, \*\]"),
    "a size that is a truth": ("num_nodes", member(bytes(8), (True,), "<i8"), r"'num_nodes' must have shape \[\]"),
    "an object": ("y", member(bytes(80), (10,), "|O"), "'y' holds pickled objects"),
    "an object in a structure": ("y", member(bytes(80), (10,), [("a", "|O")]), "'y' holds pickled objects"),
    "a structure": ("y", member(bytes(80), (10,), [("a", "<i8")]), r"'y' must be integers, got \[\('a', '<i8'\)\]"),
    "an array of arrays": ("y", member(bytes(160), (10,), ("<i8", (2,))), "'y' must be integers"),
    "dates": ("y", member(bytes(80), (10,), "<M8[s]"), "'y' must be integers, got datetime64"),
    "durations": ("x", member(bytes(240), (10, 3), "<m8[s]"), "'x' must be numbers, got timedelta64"),
    "complex numbers": ("x", member(bytes(240), (10, 3), "<c8"), "'x' must be numbers, got complex64"),
    "bytes": ("y", member(bytes(80), (10,), "|S8"), "'y' must be integers"),
    "void": ("y", member(bytes(80), (10,), "|V8"), "'y' must be integers"),
    "no bytes at all": ("y", member(b"", (10,), "|V0"), "'y' must be integers"),
    "a width beyond int64": (
        "x_shape",
        member(struct.pack("<QQ", 10, 2**64 - 1), (2,), "<u8"),
        "'x_shape' must be below",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_members(tmp_path, kind):
    name, content, message = HOSTILE[kind]
    path = tmp_path / "graph.npz"
    np.savez(path, **{k: v for k, v in (csr() if name.startswith("x_") else tiny()).items() if k != name})
    with zipfile.ZipFile(path, "a") as z:
        z.writestr(f"{name}.npy", content)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message) as e:
        warnings.simplefilter("error")
        data.load(path)
    assert str(path) in str(e.value) and len(str(e.value)) < 500


@pytest.mark.parametrize("arrays", [tiny(x=np.ones((10, 3), ">f8"), y=(np.arange(10) % 2).astype(">i2")),
                                    tiny(x=np.asfortranarray(tiny()["x"])), tiny(num_nodes=np.array(10, ">u4")),
                                    tiny(meta=np.array(META).astype(f">U{len(META)}"))])  # fmt: skip
def test_any_byte_order_and_memory_order(save, arrays):
    g = data.load(save(arrays))
    assert torch.equal(g.x, torch.tensor(arrays["x"].tolist())) and torch.equal(g.y, torch.arange(10) % 2)


def rewritten(path, change):
    """The archive with a change to the central directory, where a zip file says how large its members are."""
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    while content[at : at + 4] == b"PK\x01\x02":
        name, extra, comment = struct.unpack_from("<3H", content, at + 28)
        if content[at + 46 : at + 46 + name] == b"edge_index.npy":
            change(content, at)
        at += 46 + name + extra + comment
    path.write_bytes(content)


def put(form, where, value):
    return lambda content, at: struct.pack_into(form, content, at + where, value)


@pytest.mark.parametrize("change, message", [
    (put("<H", 8, 1), "'edge_index' is encrypted"),
    (put("<H", 10, 12), "'edge_index' must be stored or deflated, got compression 12"),
    (put("<H", 10, 99), "'edge_index' must be stored or deflated, got compression 99"),
    (put("<I", 16, 7), "'edge_index' is truncated or damaged: Bad CRC-32"),
    (put("<I", 24, 2**31), "'edge_index' must be complete"),
    (put("<I", 42, 3), "'edge_index' is truncated or damaged"),
    (put("<I", 42, 2**31), "'edge_index' is truncated or damaged"),
])  # fmt: skip
def test_hostile_directory(save, change, message):
    path = save(tiny())
    rewritten(path, change)
    with pytest.raises(ValueError, match=f"graph.npz: array {message}"):
        data.load(path)


def test_sizes_that_the_archive_cannot_hold_are_not_allocated(tmp_path, monkeypatch):
    monkeypatch.setattr(np.lib.format, "read_array", lambda *args, **kwargs: pytest.fail("read"))
    path, edges = tmp_path / "graph.npz", 2**26
    np.savez_compressed(path, **tiny(edge_index=None))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as z:
        z.writestr("edge_index.npy", member(bytes(99), (2, edges), "<i8"))
    size = 16 * edges + len(member(b"", (2, edges), "<i8"))
    for where in (24, 20):  # the size of what is packed, and then of the packed, which an archive of 2 kB cannot have
        rewritten(path, put("<I", where, size))
        with pytest.raises(
            ValueError, match="'edge_index' (must be complete, .* got a false|is .*damaged: Overlapped)"
        ):
            npz._File(path).get("edge_index", (2, None), "iu", "integers")


def test_a_bomb_is_refused_by_the_memory_there_is(save, monkeypatch):
    path = save(tiny(edge_index=np.zeros((2, 500_000), dtype=np.int64)))
    assert path.stat().st_size < 20_000 and data.load(path).num_edges == 500_000
    monkeypatch.setattr(npz, "available_memory", lambda: 15e6)
    with pytest.raises(ValueError, match="array 'edge_index' must fit into 0.0 GiB of memory, got 0.0 GiB"):
        data.load(path)


def test_names_in_an_archive(tmp_path):
    path = tmp_path / "graph.npz"
    np.savez(path, **tiny(y=None))
    for twice in ("x.npy", "x"):  # numpy takes both for x
        again = tmp_path / "again.npz"
        again.write_bytes(path.read_bytes())
        with warnings.catch_warnings(), zipfile.ZipFile(again, "a") as z:
            warnings.simplefilter("ignore")
            z.writestr(twice, b"")
        with pytest.raises(ValueError, match="again.npz: array x is there more than once"):
            data.load(again)
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("\x1b[31m\n.npy", b"")
        for i in range(1000):
            z.writestr(f"a{i}", b"")
    with pytest.raises(ValueError, match="'edge_index' is missing") as e:
        data.load(path)
    assert "\x1b" not in str(e.value) and "and 981 more" in str(e.value) and len(str(e.value)) < 500


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    for name in (tmp_path / "pipe.npz", tmp_path / "folder.npz", "/dev/zero", tmp_path):
        with pytest.raises(ValueError, match="not a file"):
            data.load(name)
    for name in ("n" * 5000, "n" * 5000 + ".npz", "a/" * 5000, "a\0b", "\ud800"):
        with pytest.raises(ValueError, match="cannot be|no such file|no set named"):
            data.load(name)


def test_features_that_overflow(save):
    large = {"x_data": np.full(10, 3e38), "x_indices": np.zeros(10, int), "x_indptr": np.array([0] + [10] * 10)}
    for arrays in (tiny(x=np.array([[3e38, -3e38, 1e-9]] * 10)), csr(**large)):
        with warnings.catch_warnings(), pytest.raises(ValueError, match=r"array '(x|x_data)' must be finite in sums"):
            warnings.simplefilter("error")
            data.load(save(arrays), normalize=True)


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


def test_a_set_with_several_splits_gives_the_one_of_the_seed(monkeypatch):
    pytest.importorskip("torch_geometric")
    from torch_geometric import datasets
    from torch_geometric.data import Data

    from sparsegnn.data import pyg

    folds = torch.arange(12) % 3  # of three splits, where each node is tested
    masks = {
        f"{name}_mask": torch.stack([(folds + k + shift) % 3 == 0 for k in range(3)], 1)
        for shift, name in enumerate(("train", "val", "test"))
    }
    edges = torch.stack([torch.arange(12), torch.arange(12).roll(1)])
    made = Data(x=torch.rand(12, 4), edge_index=edges, y=torch.arange(12) % 2, **masks)
    monkeypatch.setattr(datasets, "Planted", lambda folder: [made], raising=False)
    monkeypatch.setitem(pyg.SETS, "planted", ("Planted", None, False))
    for seed in (0, 1, 2, 4):
        graph = pyg.load_pyg("planted", split_seed=seed)
        for name in masks:
            assert torch.equal(getattr(graph, name), masks[name][:, seed % 3])
