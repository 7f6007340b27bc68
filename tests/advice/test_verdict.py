"""Which answer, from made-up steps."""

import pytest

from sparsegnn.advice.levers import Option
from sparsegnn.advice.search import Findings, Found, mildest
from sparsegnn.advice.verdict import decide

SPARSE, BOTH, HALF, QUARTER = Option(0.9), Option(0.9, maxk=32), Option(width=0.5), Option(width=0.25)
PARTS = ("weights", "features", "aggregation", "elementwise", "optimizer", "other")


def found(option, step, weights=1000, measured=True, shares=(0.5, 0.0, 0.3, 0.1, 0.05, 0.05)):
    seconds = dict(zip(PARTS, (step * share for share in shares), strict=True))
    return Found(option, seconds, {"weights": 1}, weights, step if measured else None)


def findings(given, *options, shares=(0.5, 0.0, 0.3, 0.1, 0.05, 0.05)):
    weights = {1.0: 1000, 0.5: 400, 0.25: 160}
    made = [found(o, t, 100 if o.sparsity else weights[o.width]) for o, t in options]
    return Findings(found(Option(), given, shares=shares), made)


@pytest.mark.parametrize(
    "given, options, answer, about, words",
    [
        (1.0, [(HALF, 0.5), (QUARTER, 0.3), (SPARSE, 0.2)], "levers", SPARSE, "that fast would be 0.14 times"),
        (1.0, [(HALF, 0.5), (QUARTER, 0.3), (SPARSE, 0.4)], "compare", SPARSE, "net 0.37 times as wide (about 37)"),
        (1.0, [(HALF, 0.5), (QUARTER, 0.3), (SPARSE, 0.55)], "narrower", HALF, "half the width a step takes 500 ms"),
        (1.0, [(HALF, 0.5), (QUARTER, 0.3), (SPARSE, 0.5)], "narrower", HALF, "All levers together gain no more"),
        (1.0, [(HALF, 0.8), (QUARTER, 0.7), (SPARSE, 0.95)], "narrower", QUARTER, "No lever gains a tenth of a step"),
        (1.0, [(HALF, 0.95), (QUARTER, 0.93), (SPARSE, 0.95)], "nothing", None, "Of the step 5 % is Python"),
        (1.0, [(HALF, 0.95), (QUARTER, 0.93), (SPARSE, 0.5)], "levers", SPARSE, "less than 1/64 as wide"),
        (1.0, [(SPARSE, 0.5)], "levers", SPARSE, "There is no narrower net to compare with"),
        (1.0, [], "nothing", None, "Leave it as it is"),
    ],
)  # fmt: skip
def test_answers(given, options, answer, about, words):
    said = decide(findings(given, *options), hidden=100)
    assert (said.answer, said.option) == (answer, about) and words in said.text, said.text


def test_a_dense_net_of_equal_weights_is_named():
    said = decide(findings(1.0, (HALF, 0.5), (QUARTER, 0.3), (SPARSE, 0.2)), hidden=100)
    assert 0.1 < said.equal_weights_width < 0.25 and 0.2 < said.equal_weights_seconds < 0.3
    assert said.text.endswith("ms.") and "as many weights would be 0.18 times as wide (about 18)" in said.text
    said = decide(findings(1.0, (HALF, 0.5), (QUARTER, 0.05), (SPARSE, 0.2)), hidden=None)
    assert said.text.endswith("the sparse one must be more accurate.") and said.equal_weights_seconds < 0.05


def test_a_small_share_of_weights_is_the_reason():
    few = (0.1, 0.05, 0.5, 0.3, 0.0, 0.05)
    said = decide(findings(1.0, (HALF, 0.5), (QUARTER, 0.3), (SPARSE, 0.6), shares=few))
    assert "Weights are 15 % of a step, so that their sparsity can hardly matter." in said.text
    said = decide(findings(1.0, (HALF, 0.5), (QUARTER, 0.3), (SPARSE, 0.6)))
    assert "Weights are 50 % of a step, aggregation is 30 %, whatever is done to the weights." in said.text


def test_of_those_as_fast_the_mildest_is_taken():
    rows = [
        found(Option(s, maxk=k), t) for s, k, t in ((0.98, 32, 1.0), (0.9, 32, 1.05), (0.9, 0, 1.09), (0.8, 0, 1.2))
    ]
    assert mildest(rows).option == Option(0.9) and mildest(rows[:2]).option == Option(0.9, maxk=32)
    assert mildest([rows[0], rows[3]]).option == Option(0.98, maxk=32)
