"""Figures of a study: what they show, against numbers worked out by hand; nothing in them overlaps or is cut."""

import itertools
from xml.etree import ElementTree

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("matplotlib")

import matplotlib
from study.synthetic import net, row, study, write

from sparsegnn.study import plots
from sparsegnn.study.bands import band
from sparsegnn.study.plots import draw, hover, scales, style
from sparsegnn.study.plots.describe import Bars, Missing, short
from sparsegnn.study.plots.text import number, plus_minus, with_band
from sparsegnn.study.results import read


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return view_of(tmp_path_factory.mktemp("rows"), study())


@pytest.fixture(scope="module")
def made(view):
    found, missing = plots.figures(view)
    assert missing == []
    return {figure.name: figure for figure in found}


def view_of(folder, rows):
    return plots.View(read([write(folder / "a.jsonl", rows)]))


def by_label(panel):
    return {line.label: line for line in panel.lines}


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_every_figure_is_made(made):
    each = [f"{name}-{net}" for name in ("time_to_score", "step_time", "layer_sparsity")
            for net in ("wiki-tgn", "toy-gcn", "roads-gconvgru")]  # fmt: skip
    assert list(made) == ["score_sparsity", "speedup", "score_time", "score_flops", "score_bytes", *each]
    assert all([p.title for p in made[n].panels][:2] == ["wiki, tgn", "toy, gcn"] for n in list(made)[:5])


def test_figures_without_rows_are_left_out(tmp_path):
    bare = row(model_bytes=0, flops=None, curve=[[1, 0.1, 0.1, None, 1.0]])
    for name in [name for name in bare if name.startswith("seconds_") and name != "seconds_training"]:
        del bare[name]
    found, missing = plots.figures(view_of(tmp_path, [bare]))
    assert [f.name for f in found] == ["score_time", "time_to_score-toy-gcn"]
    assert {m.name: m.why for m in missing} == {
        "score_sparsity": "no run is sparse",
        "speedup": "no sparse run has a dense one of equal width, both with seconds of training",
        "score_flops": "no run has flops above 0",
        "score_bytes": "no run has model_bytes above 0",
        "step_time": "no run has seconds of the parts of a step",
        "layer_sparsity": "no sparse run has the sparsity of its layers",
    }
    only_sparse = row(role="sparse", method="set", sparsity_asked=0.9, sparsity=0.9)
    found, missing = plots.figures(view_of(tmp_path, [only_sparse]))
    assert "no run is dense, so that there is no target" in {m.why for m in missing if m.name == "time_to_score"}
    assert "speedup" in {m.name for m in missing} and all(f.panels for f in found)
    failed = {"id": "1", "case": "a", "error": "b"}
    found, missing = plots.figures(view_of(tmp_path, [failed]))
    assert found == [] and len(missing) == 8 and all(isinstance(m, Missing) for m in missing)


def test_score_against_sparsity(made):
    wiki, toy, roads = made["score_sparsity"].panels
    assert (toy.x.label, toy.x.scale, toy.y.label) == ("sparsity, %", "kept", "test accuracy, %")
    assert wiki.y.label == "test AUC, %" and roads.y.label == "test MAE, units of the data\n(lower is better)"
    lines = by_label(toy)
    assert list(lines) == [
        "gradual", "rigl", "set", "masked dense weights", "narrower dense, equal memory",
        "narrower dense, equal time", "narrower dense, as many weights",
    ]  # fmt: skip
    rigl = lines["rigl"]
    assert [b.mean for b in rigl.x] == pytest.approx([50, 80, 90, 95]) and rigl.shaded
    assert [b.mean for b in rigl.y] == pytest.approx([80 - 2 * s**4 for s in (0.5, 0.8, 0.9, 0.95)])
    half = 4.302653 * 0.4 / 3**0.5  # of three seeds that are 0.4 points apart
    assert [b.high - b.mean for b in rigl.y] == pytest.approx([half] * 4, rel=1e-6)
    assert [b.mean for b in lines["narrower dense, equal time"].x] == pytest.approx([50, 80, 90, 95])
    (dense,) = toy.levels
    assert (dense.label, dense.y.mean) == ("dense", pytest.approx(80.0))
    assert (
        made["score_sparsity"].bands == "95 % t-interval over the seeds; smallest to largest value, fewer than 3 seeds"
    )
    assert {b.kind for line in wiki.lines for b in line.y} == {"range"}
    assert (
        made["score_sparsity"].caption.endswith("fewer than 3 seeds")
        and "Bands: 95 %" in made["score_sparsity"].caption
    )


@pytest.mark.parametrize("name, label, dense", [
    ("score_time", "measured training time, s", 20.0),
    ("score_flops", "training FLOPs, products and aggregation", 1e12),
    ("score_bytes", "model, values and indices, MiB", 1.0),
])  # fmt: skip
def test_score_against_cost(made, name, label, dense):
    toy = made[name].panels[1]
    assert (toy.x.label, toy.x.scale) == (label, "log") and len(toy.lines) == 6
    point = by_label(toy)["dense"]
    assert [b.mean for b in point.x] == pytest.approx([dense], rel=0.02)
    assert not point.shaded and "80.00 ± 0.99 %, 3 seeds" in point.text[0]
    others = by_label(toy)["dense, other widths"]
    widths = [int(text.split(" wide")[0].split()[-1]) for text in others.text]
    assert widths == sorted(set(widths)) and 128 in widths and 256 not in widths


def test_time_to_the_target(made):
    toy = made["time_to_score-toy-gcn"].panels[0]
    assert toy.x.label == "measured training time, s" and toy.title == "test accuracy 79.70 %"
    said = dict(zip(toy.names, toy.said, strict=True))
    assert len(said) == 1 + 12 + 4 + 12 and said["dense"].endswith(" s, 2 of 3")
    assert said["rigl, 50 %"].endswith(" s, 2 of 3") and said["set, 95 %"] == "not reached"
    (times,) = toy.segments
    at = dict(zip(toy.names, times.values, strict=True))
    # of seeds with 80.0 and 80.4 %, which come from 50 % by halves: 79.7 % after the 7th tenth of their time or later
    assert at["set, 95 %"] is None and 0.6 * 20 < at["dense"].mean < 20


def test_time_of_a_step_in_parts(made, tmp_path):
    toy = made["step_time-toy-gcn"].panels[0]
    assert toy.x.label == "measured time of a step, ms"
    assert [s.label for s in toy.segments] == ["weights", "aggregation", "elementwise", "mask updates", "other"]
    dense = toy.names.index("dense")
    total = sum(s.values[dense].mean for s in toy.segments)
    assert total == pytest.approx(200, rel=0.02)  # 20 s of 100 steps
    assert toy.segments[0].values[dense].mean == pytest.approx(0.6 * total)
    assert toy.said[dense].endswith(" ms") and "shown" not in made["step_time-toy-gcn"].note
    assert "optimizer is within elementwise" in made["step_time-toy-gcn"].note
    found, _ = plots.figures(view_of(tmp_path, [row(flops_optimizer=1)]))
    (bars,) = next(f for f in found if f.name == "step_time-toy-gcn").panels
    assert [(s.label, s.values[0].mean) for s in bars.segments] == [
        ("weights", 50.0), ("aggregation", 30.0), ("elementwise", 10.0), ("optimizer", 10.0), ("other", 10.0)
    ]  # fmt: skip


def test_speed_up_and_break_even(tmp_path):
    """Dense: 10 s. Sparse: 20 s at 50 %, 5 s at 90 %: equal half way. As good: 8 s at 50 %, nothing else at 90 %."""
    common = {"role": "sparse", "method": "rigl", "hidden": 256}
    rows = [
        row(id="1"),
        row(id="2", case="a", sparsity_asked=0.5, sparsity=0.5, seconds_training=20.0, test=0.79, **common),
        row(id="3", case="b", sparsity_asked=0.9, sparsity=0.9, seconds_training=5.0, test=0.8, **common),
        row(id="4", case="c", role="small_dense", matches="time", of="a", hidden=99, seconds_training=8.0, test=0.79),
    ]
    found, _ = plots.figures(view_of(tmp_path, rows))
    figure = next(f for f in found if f.name == "speedup")
    (panel,) = figure.panels
    assert (panel.x.label, panel.y.label, panel.y.scale) == ("sparsity, %", "speed-up, times", "log")
    ours, others = panel.lines
    assert ([b.mean for b in ours.x], [b.mean for b in ours.y]) == ([50, 90], [0.5, 2.0])
    assert (others.label, others.group, others.joined) == ("dense, as good as rigl", "rigl", False)
    assert (
        others.style.marker == ours.style.marker and others.style.hollow and [b.mean for b in others.y] == [1.25, 1.0]
    )
    (mark,) = panel.marks
    assert (mark.x, mark.y, mark.text) == (pytest.approx(70.0), 1.0, "rigl: break-even at 70 %")
    assert [(level.label, level.y.mean) for level in panel.levels] == [("dense of equal width", 1.0)]
    assert figure.bands == "one seed, no band"  # 1 was not measured, and is none


def test_every_method_has_its_own_line_of_what_is_as_good(made):
    toy = made["speedup"].panels[1]
    assert [line.label for line in toy.lines if "as good" in line.label] == [
        f"dense, as good as {method}" for method in ("gradual", "rigl", "set")
    ]


def test_sparsity_of_layers(made, tmp_path):
    panels = made["layer_sparsity-toy-gcn"].panels
    assert [p.title for p in panels] == ["gradual, 90 %", "rigl, 90 %", "set, 90 %"]
    assert (panels[0].x.label, panels[0].y.label) == ("optimizer steps", "sparsity of the layer, %")
    first, second = panels[0].lines
    assert first.label == "convs.0" and first.steps
    assert [b.mean for b in first.x] == [0, 40, 80, 100]
    assert [b.mean for b in first.y] == pytest.approx([0, 40.5, 81, 81]) and second.y[-1].mean == pytest.approx(90)
    two = [row(id=str(s), seed=s, role="sparse", method="set", sparsity=0.5, layers={"a": points})
           for s, points in enumerate(([[0, 0.2], [10, 0.4]], [[5, 0.3], [20, 0.6]]))]  # fmt: skip
    found, _ = plots.figures(view_of(tmp_path, two))
    (line,) = found[-1].panels[0].lines
    assert [b.mean for b in line.x] == [5, 10, 20, 100]  # the first step at which every seed has one
    assert [b.mean for b in line.y] == pytest.approx([25, 35, 50, 50]) and line.y[0].high == pytest.approx(30)


def test_cases_that_share_method_and_sparsity_are_told_apart(tmp_path):
    common = {"role": "sparse", "method": "rigl", "sparsity_asked": 0.9, "sparsity": 0.9}
    rows = [row(), *(row(id=d, case=d, config={"distribution": d}, **common) for d in ("erk", "uniform"))]
    view = view_of(tmp_path, rows)
    (found,) = view.nets
    assert [s.label for s in view.series(found, "sparse")] == ["rigl, distribution erk", "rigl, distribution uniform"]
    wide = [row(id=str(h), case=str(h), hidden=h, **common) for h in (256, 64)]
    view = view_of(tmp_path, wide)
    assert [n.title for n in view.nets] == ["toy, gcn, 64 wide", "toy, gcn, 256 wide"]
    assert {s.label for n in view.nets for s in view.series(n)} == {"rigl"}
    assert view.name(view.nets[0], view.nets[1].cases[0]) == "rigl, 90 %, 256 wide"
    again = [row(id=str(i), case=f"c{i}", **common) for i in range(2)]  # settings that nothing tells apart
    view = view_of(tmp_path, again)
    assert sorted(view.name(view.nets[0], c) for c in view.nets[0].cases) == ["rigl, 90 % (c0)", "rigl, 90 % (c1)"]


def test_what_was_not_measured_is_counted(tmp_path):
    rows = [row(), row(id="1", case="x", role="sparse", method="set", sparsity=0.5, flops=None)]
    found, _ = plots.figures(view_of(tmp_path, rows))
    figure = next(f for f in found if f.name == "score_flops")
    assert figure.note.endswith("Not shown, as not measured: 1 case") and len(figure.panels[0].lines) == 1


def test_bars_are_not_too_many(tmp_path):
    twelve = [i / 16 for i in range(5, 16)] + [0.98]
    view = view_of(tmp_path, net(methods=("rigl", "set"), sparsities=twelve, seeds=1))
    found, _ = plots.figures(view)
    figure = next(f for f in found if f.name == "step_time-toy-gcn")
    bars = figure.panels[0]
    assert figure.note.endswith("are shown, and narrower dense nets of that nearest to 90 %")
    assert len(view.nets[0].cases) == 1 + 12 * 6 and bars.names[:5] == [
        "dense", "rigl, 50 %", "rigl, 81.25 %", "rigl, 87.5 %", "rigl, 93.75 %"
    ]  # fmt: skip
    assert len(bars.names) == 1 + 4 + 4 + 4 + 3 and sum("of rigl, 87.5 %" in name for name in bars.names) == 3


# --- scales and text -------------------------------------------------------------------------------------------------


def test_scale_of_what_is_kept():
    assert [scales.place(s) for s in (0, 90, 99)] == pytest.approx([0, 1, 2])
    assert scales.place(100) == pytest.approx(4) and scales.to_scale("log", 7.0) == 7.0
    limits = scales.kept_limits([50, 95])
    assert scales.kept_ticks(limits) == [50, 80, 90, 95]
    assert len(scales.kept_ticks(scales.kept_limits([85]))) >= 2


@pytest.mark.parametrize("low, high", list(itertools.combinations((0.003, 0.9, 1.0, 1.3, 2.1, 55, 7e3, 3e12), 2)))
def test_ticks_of_a_logarithm(low, high):
    limits = scales.log_limits([low, high, -1.0])
    ticks = scales.log_ticks(*limits)
    assert limits[0] < low and high < limits[1]
    assert 3 <= len(ticks) <= 7 and all(limits[0] <= t <= limits[1] for t in ticks) and ticks == sorted(set(ticks))
    texts = [scales.suffixed(t) for t in ticks]
    assert len(set(texts)) == len(texts) and all(len(text) <= 7 for text in texts)


def test_numbers_in_words(tmp_path):
    assert [number(v) for v in (0, 0.45678, 12.345, 1234.5, 2e12, 1e-5)] == [
        "0",
        "0.457",
        "12.3",
        "1,234",
        "2.00e+12",
        "1.00e-05",
    ]
    assert scales.suffixed(5e12) == "5 T" and scales.suffixed(0.02) == "0.02"
    assert short("a" * 100, 21) == "a" * 9 + "..." + "a" * 9 and short("a\nb") == "a\\nb"
    assert plus_minus(None) == with_band(None) == "-" and plus_minus(band([-0.001]), sign=True) == "+0.00"


def test_styles_are_told_apart_without_colour():
    looks = [style.numbered(i) for i in range(36)]
    assert len({(look.marker, look.dash) for look in looks}) == 36
    assert len({look.colour for look in looks}) == len(style.COLOURS) == 6
    greys = sorted(0.3 * int(c[1:3], 16) + 0.59 * int(c[3:5], 16) + 0.11 * int(c[5:7], 16) for c in style.COLOURS)
    assert greys[-1] < 180  # all dark enough on white
    hatched = [(look.colour, look.hatch) for look in style.PARTS.values()]
    assert len({hatch for _, hatch in hatched if hatch}) == len([hatch for _, hatch in hatched if hatch]) == 5


# --- drawn -----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def settings():
    with matplotlib.rc_context(style.SETTINGS):
        yield


def rendered(figure, dpi=100):
    drawn = draw.draw(figure)
    drawn.dpi = dpi
    drawn.draw_without_rendering()
    return drawn


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["score_sparsity", "speedup", "score_time", "score_flops", "score_bytes",
                                  "time_to_score-toy-gcn", "step_time-toy-gcn", "layer_sparsity-toy-gcn"])  # fmt: skip
@pytest.mark.parametrize("dpi", [72, 200])  # of SVG and PNG
def test_nothing_overlaps_or_is_cut(made, name, dpi):
    drawn = rendered(made[name], dpi)
    page, axes = drawn.bbox, [a for a in drawn.axes if a.get_visible()]
    assert len(axes) == len(made[name].panels)
    boxes = [axis.get_tightbbox() for axis in axes]
    others = [text.get_window_extent() for text in drawn.texts] + [
        legend.get_window_extent() for legend in drawn.legends
    ]
    for box in boxes + others:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    for a, b in itertools.combinations(boxes + others, 2):
        assert not overlap(a, b, 1.0)
    for axis in axes:
        for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
            shown = [t.get_window_extent() for t in ticks if t.get_text() and t.get_window_extent().width]
            assert not any(overlap(a, b) for a, b in itertools.combinations(shown, 2))
            assert all(t.get_fontsize() >= 7 for t in ticks)


def overlap(a, b, slack=0.0):
    return a.x0 + slack < b.x1 and b.x0 + slack < a.x1 and a.y0 + slack < b.y1 and b.y0 + slack < a.y1


def test_lines_are_drawn_where_they_are(made):
    figure = made["score_sparsity"]
    axis = rendered(figure).axes[1]
    assert axis.get_xlabel() == "sparsity, %" and axis.get_ylabel() == "test accuracy, %"
    assert [t.get_text() for t in axis.get_xticklabels()] == ["50", "80", "90", "95"]
    lines = axis.get_lines()
    assert len(lines) == 1 + 7 and len(axis.collections) == 7  # the level, and a band each
    rigl = lines[2]
    assert list(rigl.get_xdata()) == pytest.approx([scales.place(s) for s in (50, 80, 90, 95)])
    assert list(rigl.get_ydata()) == pytest.approx([b.mean for b in figure.panels[1].lines[1].y])
    assert rigl.get_linestyle() == figure.panels[1].lines[1].style.dash
    (legend,) = rendered(figure).legends
    assert [t.get_text() for t in legend.get_texts()][:3] == ["dense", "gradual", "rigl"]


def test_bars_are_stacked(made):
    axis = rendered(made["step_time-toy-gcn"]).axes[0]
    bars = made["step_time-toy-gcn"].panels[0]
    assert len(axis.patches) == sum(v is not None for s in bars.segments for v in s.values)
    ends = {}
    for patch in axis.patches:
        row_of = round(patch.get_y() + patch.get_height() / 2)
        assert patch.get_x() == pytest.approx(ends.get(row_of, 0.0))
        ends[row_of] = patch.get_x() + patch.get_width()
    assert [t.get_text() for t in axis.get_yticklabels()] == [short(name, 60) for name in bars.names]


def test_files_are_the_same_twice(view, tmp_path):
    names = [set(), set()]
    for i, found in enumerate(names):
        folder = tmp_path / str(i)
        folder.mkdir()
        paths = [p for f in plots.figures(view)[0][-1:] for p in draw.save(f, folder)]
        found |= {(p.name, p.read_bytes()) for p in paths}
    assert names[0] == names[1] and len(names[0]) == 2
    for name, content in names[0]:
        if name.endswith(".svg"):
            assert ElementTree.fromstring(content).tag.endswith("svg")
        else:
            assert content.startswith(b"\x89PNG")


HOSTILE = "_</script><b>$x$\x00\x1b[31m\u202e" + "w" * 200


def test_any_name_is_drawn(tmp_path):
    rows = [row(data=HOSTILE), row(data=HOSTILE, id="1", case=HOSTILE, role="sparse", method=HOSTILE, sparsity=0.5,
                                   layers={HOSTILE: [[0, 0.5]]})]  # fmt: skip
    found, _ = plots.figures(view_of(tmp_path, rows))
    for figure in (f for f in found if f.name.partition("-")[0] in ("speedup", "step_time", "layer_sparsity")):
        for path in draw.save(figure, tmp_path):
            assert path.parent == tmp_path and path.name.replace("-", "").replace(".", "").replace("_", "").isalnum()
        ElementTree.parse(tmp_path / f"{figure.name}.svg")
        if not isinstance(figure.panels[0], Bars):
            texts = [t.get_text() for t in rendered(figure).legends[0].get_texts()]
            assert any("script" in text for text in texts)


# --- for a page ------------------------------------------------------------------------------------------------------


def test_plots_for_a_page(made):
    pytest.importorskip("plotly")
    figure = made["score_sparsity"]
    plot = hover.plot(figure.panels[1])
    shown = [trace for trace in plot["data"] if trace["hoverinfo"] == "text"]
    assert [trace["name"] for trace in shown] == ["dense", *(line.label for line in figure.panels[1].lines)]
    rigl = next(trace for trace in shown if trace["name"] == "rigl")
    assert list(rigl["y"]) == pytest.approx([b.mean for b in figure.panels[1].lines[1].y])
    assert rigl["hovertext"][0].startswith("rigl, 50 %<br>test accuracy 79.88 ± 0.99 %, 3 seeds")
    assert plot["layout"]["xaxis"]["ticktext"] == ["50", "80", "90", "95"] and "template" not in plot["layout"]
    assert plot["layout"]["yaxis"]["title"]["text"] == "test accuracy, %"
    speed = hover.plot(made["speedup"].panels[1])
    assert speed["layout"]["yaxis"]["type"] == "log" and speed["layout"]["yaxis"]["range"][0] < 0
    bars = hover.plot(made["step_time-toy-gcn"].panels[0])
    assert bars["layout"]["barmode"] == "stack" and [t["type"] for t in bars["data"]] == ["bar"] * 5 + ["scatter"]
    pattern = bars["data"][1]["marker"]["pattern"]
    assert (pattern["shape"], pattern["fillmode"]) == ("/", "overlay") and bars["data"][1]["marker"][
        "color"
    ] == "#E69F00"


def test_text_for_a_page_is_escaped(tmp_path):
    pytest.importorskip("plotly")
    rows = [row(), row(id="1", role="sparse", case="b", method="<a href='x'>&", sparsity=0.5)]
    for figure in plots.figures(view_of(tmp_path, rows))[0]:
        for panel in figure.panels:
            text = str(hover.plot(panel)).replace("<br>", "").replace("<extra>", "")
            assert "<" not in text and "&lt;a href=" in text


def test_made_up_net_has_every_role():
    assert {r["role"] for r in net()} == {"dense", "sparse", "small_dense", "masked"}
