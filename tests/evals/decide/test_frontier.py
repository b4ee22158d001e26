"""A policy is dominated only where the data show it."""

from llmkit.evals import Cascade
from tests.support.recorded_runs import make_report, make_result


def report_of(**variants):
    return make_report(
        make_result(label, f"s{i}", score, input_tokens=tokens, output_tokens=0)
        for label, (tokens, scores) in variants.items()
        for i, score in enumerate(scores)
    )


def test_a_clearly_worse_and_dearer_variant_is_dominated():
    report = report_of(cheap=(10, [1.0] * 40), dear=(20, [0.0] * 40), best=(30, [1.0] * 40))
    frame = report.frontier(against="tokens").set_index("policy")
    assert frame.index.tolist() == ["cheap", "dear", "best"]
    assert frame["dominated_by"].fillna("").to_dict() == {"cheap": "", "dear": "cheap", "best": "cheap"}
    assert frame["on_frontier"].tolist() == [True, False, False]


def test_a_difference_that_is_not_shown_dominates_nothing():
    report = report_of(a=(10, [1, 1, 1, 0, 1, 0]), b=(20, [1, 1, 0, 0, 1, 0]))
    assert report.frontier(against="tokens")["on_frontier"].all()


def test_cost_that_is_unknown_dominates_nothing():
    report = report_of(a=(10, [1.0] * 40), b=(20, [0.0] * 40))
    assert report.frontier(against="cost")["on_frontier"].all()
    prices = {"a": (1.0, 1.0), "b": (1.0, 1.0)}
    assert report.frontier(against="cost", prices=prices)["on_frontier"].tolist() == [True, False]


def test_less_is_better_turns_domination_round():
    results = report_of(a=(10, [0.1] * 40), b=(20, [0.9] * 40)).results
    frame = make_report(results, lower_is_better=["match"]).frontier(against="tokens").set_index("policy")
    assert frame["on_frontier"].to_dict() == {"a": True, "b": False}


def test_policies_take_part():
    report = report_of(a=(10, [1.0] * 20 + [None] * 20), b=(50, [1.0] * 40))
    frame = report.frontier(against="tokens", policies={"careful": Cascade("a", "b")}).set_index("policy")
    assert frame.loc["careful", "value"] == 35.0
    assert frame.loc["b", "dominated_by"] == "careful"


def test_the_plot_names_every_policy_and_joins_the_frontier():
    report = report_of(cheap=(10, [0.0] * 40), dear=(20, [1.0] * 40), worse=(30, [0.0] * 40))
    ax = report.plot_frontier(against="tokens")
    _handles, labels = ax.get_legend_handles_labels()
    assert labels == ["cheap", "dear", "worse (dominated by cheap, dear)"]
    assert [10.0, 20.0] in [list(line.get_xdata()) for line in ax.get_lines()]
    assert ax.get_xlabel() == "tokens of a sample, input and output (mean)"


def test_the_plot_says_when_nothing_is_known():
    ax = report_of(a=(10, [1.0] * 3), b=(20, [0.0] * 3)).plot_frontier(against="cost")
    assert ax.get_legend_handles_labels()[1] == ["a (unknown)", "b (unknown)"]
    assert [text.get_text() for text in ax.texts] == ["Nothing has both a score and a known value."]


def test_the_page_has_the_frontier(tmp_path):
    file = tmp_path / "page.html"
    report_of(cheap=(10, [1.0] * 40), dear=(20, [0.0] * 40)).to_html(file)
    page = file.read_text()
    section = page[page.index('<section id="frontier"') :]
    assert "Tokens of a sample" in section
    assert "cheap" in section
