"""The page of a study: one file that asks for nothing, with all text escaped; opened in a browser that is there."""

import html.parser
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("plotly")
pytest.importorskip("matplotlib")

from study.synthetic import ends, net, row, study, write

from sparsegnn import cli
from sparsegnn.study import plots, tables
from sparsegnn.study.report import page
from sparsegnn.study.results import read

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rows") / "study.jsonl", study())


@pytest.fixture(scope="module")
def text(rows):
    return page(read([rows]))


class Elements(html.parser.HTMLParser):
    """All tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.inside, self.scripts = [], [], None, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag if tag in ("script", "style") else None
        self.scripts += [""] * (tag == "script")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside is None:
            self.words.append(data)


# --- tables ----------------------------------------------------------------------------------------------------------


def cells(table, row_name):
    names = [name for name, *_ in table.head]
    (found,) = [r for r in table.rows if r[0].text == row_name]
    return dict(zip(names, found, strict=True))


def view_of(tmp_path, rows):
    return plots.View(read([write(tmp_path / "a.jsonl", rows)]))


def three(tmp_path):
    """Dense 80 % in 10 s; sparse 79.8 % in 2 of its 4 s; narrow 79.8 % in 5 s: sparse pays, 2.5 times."""
    rows = [
        row(id="1"),
        row(id="2", case="s", role="sparse", method="rigl", sparsity_asked=0.9, sparsity=0.9, test=0.799, flops=2e9,
            seconds_training=4.0, run_memory_bytes=50e6, weights=10_000, model_bytes=2**19,
            curve=[[50, 0.7, 0.798, 1e9, 2.0]]),
        row(id="3", case="n", role="small_dense", matches="time", of="s", hidden=90, weights=20_000,
            **ends(0.798, 5.0)),
    ]  # fmt: skip
    return view_of(tmp_path, rows)


def test_summary_by_hand(tmp_path):
    view = three(tmp_path)
    found = cells(tables.summary(view, view.nets[0]), "rigl, 90 %")
    assert {name: cell.text for name, cell in found.items()} == {
        "case": "rigl, 90 %", "sparsity, %": "90.00", "width": "256", "seeds": "1", "test accuracy, %": "79.90",
        "to dense": "-0.10", "FLOPs": "0.200", "time": "0.400", "time, s": "4.00", "time, to narrow": "0.800",
        "memory": "0.500", "model, MiB": "0.500", "to target, s": "2.00",
    }  # fmt: skip
    dense = cells(tables.summary(view, view.nets[0]), "dense")
    assert (dense["time"].text, dense["to dense"].text, dense["time, to narrow"].text) == ("1", "-", "-")


def test_counterparts_and_overview_by_hand(tmp_path):
    view = three(tmp_path)
    (line,) = tables.against(view, view.nets[0]).rows
    assert [c.text for c in line] == ["rigl, 90 %", "narrower dense, equal time", "90", "79.80", "+0.10", "0.800",
                                      "0.500", "0.500"]  # fmt: skip
    (line,) = tables.overview(view).rows
    assert [c.text for c in line] == ["toy, gcn", "80.00 %", "79.70 %", "narrower dense, 90 wide: time of rigl, 90 %",
                                      "5.00", "rigl, 90 %", "2.00", "2.50"]  # fmt: skip
    said = tables.answer(view, view.nets[0])
    assert said.startswith(
        "Of the nets that reach the target, test accuracy 79.70 %: rigl, 90 % is there 2.50 times as soon"
    )


def test_overview_of_several_widths(tmp_path):
    """The wide net is best, at 81 %; of the narrow one's cases none comes near, and both sections say so."""
    common = {"role": "sparse", "method": "rigl", "sparsity_asked": 0.9, "sparsity": 0.9}
    rows = [row(id="1"), row(id="2", case="d512", hidden=512, **ends(0.81, 30.0)),
            row(id="3", case="s256", test=0.80, **common),
            row(id="4", case="s512", hidden=512, **ends(0.809, 15.0), **common)]  # fmt: skip
    view = view_of(tmp_path, rows)
    (line,) = tables.overview(view).rows
    assert [c.text for c in line] == ["toy, gcn", "81.00 %", "80.70 %", "dense, 512 wide", "30.0",
                                      "rigl, 90 %, 512 wide", "15.0", "2.00"]  # fmt: skip
    small, large = view.nets
    assert tables.answer(view, small).startswith("No sparse net reaches the target, test accuracy 80.70 %")
    assert "rigl, 90 % is there 2.00 times as soon as dense, the soonest dense net" in tables.answer(view, large)
    assert cells(tables.summary(view, small), "rigl, 90 %")["time, to narrow"].text == "1.00"


def test_answers(tmp_path):
    dense, sparse = row(id="1"), row(id="2", case="s", role="sparse", method="set", sparsity=0.5)
    said = {}
    for name, rows in {
        "none": [sparse], "alone": [dense], "slow": [dense, sparse | ends(0.8, 20.0)],
        "worse": [dense, sparse | ends(0.5, 1.0)],
        "equal": [dense | {"seed": s, "id": f"d{s}"} | ends(0.8, 10.0 + s) for s in range(3)]
        + [sparse | {"seed": s, "id": f"s{s}"} | ends(0.8, 9.9 + s) for s in range(3)],
    }.items():  # fmt: skip
        view = view_of(tmp_path, rows)
        said[name] = tables.answer(view, view.nets[0])
    assert said["none"].startswith("No dense net was trained")
    assert (
        said["alone"]
        == said["worse"]
        == "No sparse net reaches the target, test accuracy 79.70 %, in the mean of its seeds."
    )
    assert "the soonest sparse net, is there only 0.500 times as soon as dense" in said["slow"]
    assert "is there as soon as dense, the soonest dense net, within the band" in said["equal"]


def test_failures_and_environments(tmp_path):
    other = row()["environment"] | {"date": "2001-01-01"}
    rows = [row(), row(id="1", case="b", environment=other, started="2001-01-01T00:00:00"),
            {"id": "2", "case": "c", "error": "a\nb", "seed": 3}]  # fmt: skip
    view = view_of(tmp_path, rows)
    (line,) = tables.failures(view).rows
    assert [c.text for c in line][:5] == ["c", "", "", "3", "a\\nb"]
    (line,) = tables.environments(view).rows
    assert [c.text for c in line] == ["made-up", "2", "Made-up CPU", "2", "2", "0.0", "2000-01-01T00:00:00",
                                      "2001-01-01T00:00:00"]  # fmt: skip


# --- the page --------------------------------------------------------------------------------------------------------


def test_page_asks_for_nothing(text):
    found = Elements(text)
    for tag, attributes in found.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", (tag, attributes)
    policy = next(a["content"] for t, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "http" not in policy and "connect-src" not in policy
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    assert "url(" not in style and "@import" not in style


def test_page_has_everything(text):
    found = Elements(text)
    ids = {a["id"] for _, a in found.tags if "id" in a}
    targets = {a["href"][1:] for t, a in found.tags if t == "a"}
    assert targets == {"overview", "net-1", "net-2", "net-3", "failed", "environment", "reading"} <= ids
    places = {a["id"] for _, a in found.tags if a.get("class") == "plot"}
    described = json.loads(next(s for s in found.scripts if s.startswith('{"plot-1"')))
    assert places == described.keys() and len(places) == 7 * 3 + 3 + 2 + 1
    words = " ".join(found.words)
    for said in ("Runs that failed", "CheckFailed: training diverged", "95 % intervals", "Made-up CPU", "toy, gcn"):
        assert said in words, said
    tables_found = [a["data-name"] for t, a in found.tags if t == "table"]
    assert tables_found == ["overview", *["summary", "counterparts"] * 3, "failed", "environment"]
    assert "not drawn" not in words.lower() and len(text) < 10e6


EVIL = "</script><b>bold</b><img src=x onerror=alert(1)>&amp;\"'"


def test_text_is_escaped(tmp_path):
    values = {"data": EVIL, "model": EVIL, "study": EVIL, "environment": {"processor": EVIL, EVIL: EVIL, "threads": 2}}
    rows = [row(**values), row(id="1", case=EVIL, role="sparse", method=EVIL, sparsity=0.5, layers={EVIL: [[0, 0.5]]},
                               **values),
            row(id="3", case="n" + EVIL, role="small_dense", matches="time", of=EVIL, **values),
            {"id": "2", "case": EVIL, "error": EVIL, "data": EVIL, "model": EVIL}]  # fmt: skip
    folder = tmp_path / "<b>"
    folder.mkdir()
    found = Elements(page(read([write(folder / "a.jsonl", rows)])))
    assert not [t for t, a in found.tags if t in ("b", "img")] and not [a for _, a in found.tags if "onerror" in a]
    assert len(found.scripts) == 3 and " ".join(found.words).count("<b>bold</b>") > 10
    described = json.loads(found.scripts[0])
    assert "<" not in found.scripts[0] and "<br>" in json.dumps(described)  # nothing in it ends the script
    assert "<b>" not in json.dumps(described) and "&lt;b&gt;" in json.dumps(described)


def test_page_of_failures_alone(tmp_path):
    text = page(read([write(tmp_path / "a.jsonl", [{"id": "1", "case": "c", "error": "e"}])]))
    words = " ".join(Elements(text).words)
    assert "no finished runs" in words and "Not drawn:" in words and "no run is sparse" in words


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    pytest.importorskip("typer")
    monkeypatch.chdir(tmp_path)

    def call(*args):
        code = cli.main([str(a) for a in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def few(tmp_path):
    return write(tmp_path / "few.jsonl", net(methods=("rigl",), sparsities=(0.9,), seeds=1))


def test_plot_writes_files(run, tmp_path):
    code, out, err = run("plot", few(tmp_path), "--out", "new/folder")
    names = sorted(os.listdir("new/folder"))
    assert code == 0 and err == "" and out.split() == [str(p) for p in map(Path, out.split())]
    assert sorted(Path(p).name for p in out.split()) == names and len(names) == 16
    assert all((tmp_path / p).stat().st_size > 1000 for p in out.split())


def test_plot_says_what_it_leaves_out(run, tmp_path):
    bare = row(flops=None, model_bytes=0, seconds_training=0.0)
    code, out, err = run("plot", write(tmp_path / "a.jsonl", [bare]))
    assert code == 0 and "sparsegnn: no figure score_sparsity: no run is sparse\n" in err
    assert out == "".join(
        f"figures/{name}.{kind}\n" for name in ("time_to_score-toy-gcn", "step_time-toy-gcn") for kind in ("svg", "png")
    )
    code, out, err = run("plot", "a.jsonl", "--json")
    made = json.loads(out)
    assert (
        code == 0
        and err == ""
        and made["figures"][0] == "figures/time_to_score-toy-gcn.svg"
        and len(made["left_out"]) == 6
    )


def test_report_writes_a_file(run, tmp_path):
    code, out, err = run("report", few(tmp_path), few(tmp_path), "--out", "page.html")
    assert (code, out, err) == (0, "page.html\n", "") and os.listdir().count("page.html") == 1
    assert "toy, gcn" in Path("page.html").read_text(encoding="utf-8")
    code, out, _ = run("report", few(tmp_path), "--json")
    assert code == 0 and json.loads(out) == {"report": "report.html", "runs": 6, "failed": 0}


BAD = [
    (("plot",), "Missing argument"),
    (("plot", "none.jsonl"), "No such file or directory: 'none.jsonl'"),
    (("plot", "a.jsonl", "--out", "a.jsonl"), "out must be a folder that can be written to, got 'a.jsonl'"),
    (("report", "a.jsonl", "--out", "."), "out must be a file in a writable folder, got '.'"),
    (("report", "a.jsonl", "--out", "no/page.html"), "out must be a file in a writable folder, got 'no/page.html'"),
    (("report", "b.jsonl"), "b.jsonl:1: each line must be a JSON object, got nonsense"),
]


@pytest.mark.parametrize("args, message", BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_exits_with_2(run, args, message):
    write(Path("a.jsonl"), [row()])
    Path("b.jsonl").write_text("nonsense\n")
    code, out, err = run(*args)
    assert code == 2 and message in err and "Traceback" not in err and out == ""
    assert sorted(os.listdir()) == ["a.jsonl", "b.jsonl"]


# --- in a browser ----------------------------------------------------------------------------------------------------


def browser():
    """chromium, or what playwright has downloaded."""
    named = next((path for name in NAMES if (path := shutil.which(name))), None)
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", Path.home() / ".cache" / "ms-playwright"))
    downloaded = sorted(p for name in ("chrome", "headless_shell") for p in cache.glob(f"chromium*/*/{name}"))
    return named or (str(downloaded[-1]) if downloaded else None)


#: before all other scripts: what goes wrong
WATCH = """<script>
const wrong = [];
addEventListener("error", (e) => wrong.push(`error: ${e.message}`));
addEventListener("unhandledrejection", (e) => wrong.push(`rejected: ${e.reason}`));
addEventListener("securitypolicyviolation", (e) => wrong.push(`policy: ${e.violatedDirective} ${e.blockedURI}`));
for (const level of ["error", "warn"]) console[level] = (...all) => wrong.push(`${level}: ${all.join(" ")}`);
</script>"""
#: after all others: what a person would do
ACT = """<script>
const column = (table, i) => [...table.tBodies[0].rows].map((row) => row.cells[i].innerText);
const sorted = (name, i) => {
  const table = document.querySelector(`table[data-name="${name}"]`), head = table.tHead.rows[0].cells[i];
  const states = [column(table, i)];
  for (let n = 0; n < 2; n++) {
    head.querySelector("button").click();
    states.push(column(table, i), head.getAttribute("aria-sort"));
  }
  return states;
};
const act = async () => {
  const places = [...document.querySelectorAll(".plot")];
  const line = places.find((p) => p.data[0].type === "scatter"), bar = places.find((p) => p.data[0].type === "bar");
  const hovered = [];
  for (const [place, curve] of [[line, line.data.findIndex((t) => t.hovertext && t.hovertext.length > 3)], [bar, 0]]) {
    Plotly.Fx.hover(place, [{ curveNumber: curve, pointNumber: 1 }]);
    await new Promise((done) => setTimeout(done, 100));
    hovered.push(place.querySelector(".hoverlayer").textContent);
  }
  return {
    wrong,
    buttons: [...new Set([...document.querySelectorAll(".modebar-btn")].map((b) => b.dataset.title))],
    drawn: document.documentElement.dataset.plots,
    places: places.length,
    empty: places.filter((p) => !p.querySelector(".trace path, .trace text, .bars path")).map((p) => p.id),
    titles: places.map((p) => p.querySelector(".gtitle")?.textContent),
    text: sorted("overview", 0), numbers: sorted("summary", 4), missing: sorted("summary", 5),
    hovered,
    fetched: performance.getEntriesByType("resource").map((e) => e.name),
    width: [document.documentElement.scrollWidth, innerWidth],
    cut: places.filter((p) => p.querySelector(".main-svg").getBoundingClientRect().right > innerWidth).map((p) => p.id),
  };
};
const wait = setInterval(async () => {
  if (document.documentElement.dataset.plots !== String(document.querySelectorAll(".plot").length)) return;
  clearInterval(wait);
  const said = document.createElement("pre");
  said.id = "said";
  said.textContent = JSON.stringify(await act().catch((e) => ({ failed: String(e.stack) })));
  document.body.append(said);
}, 20);
</script>"""


def opened(text, tmp_path, width):
    path = browser()
    if path is None:
        pytest.skip("no browser: install chromium (Debian: apt-get install chromium) to open the page")
    watched = text.replace("<head>", "<head>" + WATCH, 1).replace("</body>", ACT + "</body>", 1)
    assert WATCH in watched and ACT in watched
    (tmp_path / "page.html").write_text(watched, encoding="utf-8")
    command = [path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=60000",
               "--dump-dom", (tmp_path / "page.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.S)
    assert said, done.stderr[-2000:] + done.stdout[-500:]
    found = json.loads(html.unescape(said[1]))
    assert "failed" not in found, found
    return found


BUTTONS = ["Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Autoscale", "Reset axes"]


def test_page_in_a_browser(text, tmp_path):
    found = opened(text, tmp_path, 1280)
    assert found["wrong"] == [] and found["fetched"] == [] and found["buttons"] == BUTTONS
    assert found["drawn"] == str(found["places"]) == "27" and found["empty"] == [] and all(found["titles"])
    before, up, said_up, down, said_down = found["text"]
    assert (said_up, said_down) == ("ascending", "descending") and before[0] == "wiki, tgn"
    assert up == ["roads, gconvgru", "toy, gcn", "wiki, tgn"] and down == up[::-1]
    _, up, _, down, _ = found["numbers"]
    scores = [float(text.split()[0]) for text in up]
    assert scores == sorted(scores) and len(set(scores)) > 5 and [float(t.split()[0]) for t in down] == scores[::-1]
    _, up, _, down, _ = found["missing"]
    assert up[-1] == down[-1] == "-" and "-" not in up[:-1] + down[:-1]  # what has no number is last both ways
    assert all("seeds" in text for text in found["hovered"]) and "test AUC" in found["hovered"][0]
    assert found["width"][0] <= found["width"][1] and found["cut"] == []


def test_text_of_results_in_a_browser(tmp_path):
    rows = [row(data=EVIL, model=EVIL), row(id="1", case=EVIL, role="sparse", method=EVIL, sparsity=0.5, data=EVIL,
                                            model=EVIL, layers={EVIL: [[0, 0.5], [50, 0.6]]}),
            *net(data="wiki", model="tgn", task="links", methods=("rigl",))]  # fmt: skip
    found = opened(page(read([write(tmp_path / "a.jsonl", rows)])), tmp_path, 500)
    assert found["wrong"] == [] and found["fetched"] == [] and found["empty"] == []
    assert found["width"][0] <= found["width"][1] and found["cut"] == []  # on a narrow window, whatever the names
    assert any("<b>bold" in title for title in found["titles"])
