"""Graphs in tables: what loads, against the same arrays made by hand, and what is refused by which words."""

import numpy as np
import pytest
import torch

from sparsegnn import data

EDGES = "source,target\nann,bob\nbob,ann\ncid,ann\ndan,cid\neve,eve\n"
FEATURES = """\
id,size,label,height,split
ann,1,yes,0.5,train
bob,2,no,-1e3,train
cid,3,yes,0,val
dan,4,no,1,test
eve,5,,2,
"""
FILES = {"edges.csv": EDGES, "features.csv": FEATURES}


@pytest.fixture
def load(tmp_path):
    def call(files=FILES, **options):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        names = {
            key: tmp_path / name for name in files if (key := name.partition(".")[0]) in ("edges", "features", "labels")
        }
        return data.load_tables(**names, **options)

    return call


def arcs(graph):
    return {tuple(pair) for pair in graph.edge_index.t().tolist()}


def test_by_hand(load):
    g = load(name="people")
    assert torch.equal(g.x, torch.tensor([[1, 0.5], [2, -1e3], [3, 0], [4, 1], [5, 2]]))
    assert arcs(g) == {(0, 1), (1, 0), (2, 0), (0, 2), (3, 2), (2, 3)} and g.num_edges == 6
    assert g.y.tolist() == [1, 0, 1, 0, -1] and (g.name, g.num_classes) == ("people", 2)
    assert [m.nonzero().view(-1).tolist() for m in (g.train_mask, g.val_mask, g.test_mask)] == [[0, 1], [2], [3]]
    assert g.notes == ("1 self-loops left out", "both directions of every edge") and g.edge_weight is None


def test_directed_edges_and_weights(load):
    weights = iter(("weight", 1, 2, 3, 4, 5))
    text = "".join(f"{line},{next(weights)}\n" for line in EDGES.splitlines())
    g = load({**FILES, "edges.csv": text + "dan,cid,4\n"}, directed=True)
    found = {tuple(pair): w for pair, w in zip(g.edge_index.t().tolist(), g.edge_weight.tolist(), strict=True)}
    assert found == {(0, 1): 1.0, (1, 0): 2.0, (2, 0): 3.0, (3, 2): 4.0} and g.name == "edges"
    assert g.notes == ("1 self-loops left out", "1 edges given twice left out")
    with pytest.raises(
        ValueError, match=r"edges.csv: an edge that is given twice must have the same weight in both dir"
    ):
        load({**FILES, "edges.csv": text})


def test_labels_of_their_own(load):
    """In any order, of some nodes; without ids in the features these are the numbers of the rows; a split is made."""
    rng, n = np.random.default_rng(0), 40
    x, y = rng.random((n, 3), dtype=np.float32), rng.integers(9, 12, n)
    features = "a,b,c\n" + "".join(",".join(map(repr, row.tolist())) + "\n" for row in x)
    labels = "label,id\n" + "".join(f"{y[i]},{i}\n" for i in rng.permutation(n)[:30])
    edges = "target\tsource\n" + "".join(f"{i}\t{(i + 7) % n}\n" for i in range(n))
    files = {"edges.tsv": edges, "features.csv": features, "labels.csv": labels}
    g = load(files, split_seed=3, normalize=True)
    torch.testing.assert_close(g.x, torch.from_numpy(x / x.sum(1, keepdims=True)))
    labelled = {int(line.split(",")[1]) for line in labels.splitlines()[1:]}
    assert all(g.y[i] == (y[i] - 9 if i in labelled else -1) for i in range(n))
    assert arcs(g) == {(i, (i + 7) % n) for i in range(n)} | {((i + 7) % n, i) for i in range(n)}
    wanted = data.random_split(g.y.numpy(), 3)
    assert all(torch.equal(getattr(g, name), torch.from_numpy(mask)) for name, mask in wanted.items())
    assert "split 60/20/20 made with split seed 3" in g.notes and "feature rows divided by their sum" in g.notes


def test_quoted_names_and_spaces(load):
    text = FEATURES.replace("ann,", '"a, nn",').replace("label", '" label "').replace("yes", " yes ")
    g = load({"edges.csv": EDGES.replace("ann", '"a, nn"'), "features.csv": text})
    assert g.y.tolist() == [1, 0, 1, 0, -1] and g.num_edges == 6


def test_parquet_is_the_same(load, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, text in FILES.items():
        head, *rows = [line.split(",") for line in text.splitlines()]
        columns = {n: [row[i] for row in rows] for i, n in enumerate(head)}
        columns = {
            n: [float(v) for v in c] if n in ("size", "height") else [v or None for v in c] for n, c in columns.items()
        }
        parquet.write_table(pyarrow.table(columns), tmp_path / name.replace("csv", "parquet"))
    g, same = data.load_tables(tmp_path / "edges.parquet", tmp_path / "features.parquet"), load()
    for name in ("x", "y", "edge_index", "train_mask", "val_mask", "test_mask"):
        assert torch.equal(getattr(g, name), getattr(same, name)), name


def test_parquet_that_is_refused(load, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"id": ["ann"], "size": ["tall"]}), tmp_path / "text.parquet")
    parquet.write_table(pyarrow.table({"source": ["ann"]}), tmp_path / "lacks.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    for name, said in (
        ("text", "must be a Parquet table of numbers but in id, "),
        ("damaged", "must be a Parquet table: "),
    ):
        with pytest.raises(ValueError, match=f"{name}.parquet: {said}"):
            data.load_tables(tmp_path / "lacks.parquet", tmp_path / f"{name}.parquet")
    (tmp_path / "features.csv").write_text(FEATURES)
    with pytest.raises(ValueError, match="lacks.parquet: column 'target' is missing"):
        data.load_tables(tmp_path / "lacks.parquet", tmp_path / "features.csv")


def test_parquet_without_pyarrow(load, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "features.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"features.parquet: Parquet needs pyarrow: pip install pyarrow, or write"):
        load({"edges.csv": EDGES, "features.parquet": ""})


BAD = [
    ("edges.csv", "", "the first line must name the columns, got nothing"),
    ("edges.csv", "1,2\n3,4\n", "the first line must name the columns, got 1, 2"),
    ("edges.csv", "source,to\na,b\n", "column 'target' is missing (has: source, to)"),
    ("edges.csv", "source,target,source\na,b,c\n", "columns must have names of their own, got source twice"),
    ("edges.csv", "source,target,time\na,b,1\n", "columns must be among source, target, weight, got 'time'"),
    ("edges.csv", EDGES + "ann,zoe\n", "column 'target' must hold ids of the features' table, got 1 others, such "
     "as 'zoe'"),
    ("edges.csv", EDGES + "ann\n", "must be a table of 2 columns"),
    ("edges.csv", "source,target\n", "must hold an edge between two nodes, got none"),
    ("edges.csv", "source,target\nann,ann\n", "must hold an edge between two nodes, got none"),
    ("edges.csv", "source,target,weight\nann,bob,-1\n", "column 'weight' must hold finite numbers that are not "),
    ("edges.csv", "source,target,weight\nann,bob,x\n", "must be a table of 3 columns, numbers but in id, label"),
    ("features.csv", FEATURES.replace("bob", "ann"), "ids must be different, got 'ann' twice"),
    ("features.csv", FEATURES.replace("-1e3", "tall"), "must be a table of 5 columns, numbers but in id, label"),
    ("features.csv", FEATURES.replace("-1e3", "inf"), "features must be finite, got 1 NaN or infinite value(s)"),
    ("features.csv", FEATURES.replace("-1e3", ""), "must be a table of 5 columns"),
    ("features.csv", "id,label\nann,yes\n", "must hold a row for each node and a column of numbers, got 1 rows of 0"),
    ("features.csv", "id,size,label\n", "must hold a row for each node and a column of numbers, got 0 rows of 1"),
    ("features.csv", FEATURES.replace("label", "level"), "must be a table of 5 columns"),
    ("features.csv", FEATURES.replace("no", "yes"), "column 'label' must hold at least two classes, got 1"),
    ("features.csv", FEATURES.replace("val", "dev"), "column 'split' must hold train, val, test or nothing, got 'dev'"),
    ("features.csv", FEATURES.replace("val", ""), "column 'split' must give val at least one node, got none"),
    ("features.csv", FEATURES.replace("2,\n", "2,val\n"), "column 'split' must be empty where there is no label, "),
    ("labels.csv", "id,label\nann,1\n", "labels must be here or in a file of their own, got both"),
]  # fmt: skip


@pytest.mark.parametrize("name, text, said", BAD, ids=[f"{name} {i}" for i, (name, _, _) in enumerate(BAD)])
def test_refused(load, name, text, said):
    with pytest.raises(ValueError) as caught:
        load({**FILES, name: text})
    where = "features.csv" if name == "labels.csv" else name
    assert f"{where}: {said}" in str(caught.value)


BAD_LABELS = [
    ("id,label\nann,1\nann,2\n", "ids must be different, got one twice"),
    ("id,label\nzoe,1\n", "column 'id' must hold ids of the features' table, got 1 others, such as 'zoe'"),
    ("id,class\nann,1\n", "column 'label' is missing (has: id, class)"),
    ("id,label\nann,1\nbob,2\n", None),  # two labels: too few for a split
]


@pytest.mark.parametrize("text, said", BAD_LABELS, ids=range(len(BAD_LABELS)))
def test_refused_labels(load, text, said):
    features = "id,size\nann,1\nbob,2\ncid,3\ndan,4\neve,5\n"
    with pytest.raises(ValueError) as caught:
        load({"edges.csv": EDGES, "features.csv": features, "labels.csv": text})
    assert (f"labels.csv: {said}" if said else "a split needs at least 5 labelled nodes, got 2") in str(caught.value)


def test_a_graph_without_labels(load):
    features = "id,size\nann,1\nbob,2\ncid,3\ndan,4\neve,5\n"
    with pytest.raises(
        ValueError, match="features.csv: labels must be a column 'label' here, or in a file of their own"
    ):
        load({"edges.csv": EDGES, "features.csv": features})


@pytest.mark.parametrize(
    "name, said", [("none.csv", "no such file"), (".", "not a file"), ("x.xlsx", "must be .csv, .tsv")]
)
def test_files(tmp_path, name, said):
    (tmp_path / "x.xlsx").write_text("a,b\n")
    with pytest.raises(ValueError, match=said):
        data.load_tables(tmp_path / name, tmp_path / name)


def test_text_that_is_none(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"source,\xff\n")
    with pytest.raises(ValueError, match="x.csv: must be text in UTF-8"):
        data.load_tables(tmp_path / "x.csv", tmp_path / "x.csv")
