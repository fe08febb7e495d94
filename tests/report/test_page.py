"""The page: valid, complete, escaped, and in need of nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from asmil.engine.protocols import Figure
from asmil.errors import EnvironmentProblem
from asmil.metrics.values import Metric
from asmil.report.content import HeadlineRow, Reference, ReportContent, SearchSummary, StabilityCurve, TrialRow
from asmil.report.page import render_report, write_report

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Parses a page strictly: every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open[-1:]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture(scope="module")
def full_html(full_report: ReportContent) -> str:
    return render_report(full_report)


@pytest.fixture(scope="module")
def full_page(full_html: str) -> Page:
    return Page(full_html)


@pytest.fixture(scope="module")
def render() -> Callable[[ReportContent], Page]:
    return lambda content: Page(render_report(content))


def test_page_holds_every_part(full_report: ReportContent, full_page: Page) -> None:
    page = full_page
    assert [section["id"] for section in page.tags("section")] == [
        "results",
        "protocol",
        "figures",
        "search",
        "stability",
        "ledger",
        "configuration",
    ]
    assert [link["href"] for link in page.tags("a")] == [f"#{section['id']}" for section in page.tags("section")]
    assert len(page.tags("svg")) == len(page.tags("figure")) == 10
    assert all(svg["aria-label"] for svg in page.tags("svg"))
    for text in (
        full_report.title,
        *full_report.notices,
        *(part for fact in full_report.facts for part in fact),
        *full_report.protocol,
        "0.683",
        "95 % interval 0.602 to 0.756",
        "age only (ridge Cox) 0.614 [0.580, 0.648]",
        "40 trials (23 complete, 16 stopped early, 1 failed)",
        "trial 22 is best",
        "non-finite loss",
        "tune.finalize: refit of trial 23",
        "kl_weight: 0.97",
    ):
        assert text in page.text, text


def test_null_and_warned_metrics_print_their_reason(full_page: Page, render: Callable[[ReportContent], Page]) -> None:
    assert "n/a (no_comparable_pairs)" in full_page.text
    assert "n/a (not_found)" in full_page.text
    assert "0.500 [0.500, 0.500] (collapsed)" in full_page.text
    null_first = render(ReportContent("t", headline=(HeadlineRow("C", Metric(None, "no_events")),)))
    assert "n/a (no_events)" in null_first.text
    assert "95 % interval" not in null_first.text.replace("value [95 % interval]", "")
    warned = render(ReportContent("t", headline=(HeadlineRow("C", Metric(0.5, "collapsed")),)))
    assert [p for p in warned.tags("p") if p.get("class") == "warning"]


def test_numbers_of_every_figure_stand_beside_it(full_report: ReportContent, full_page: Page) -> None:
    text = full_page.text
    for trial in full_report.searches[0].trials:
        if trial.value is not None:
            assert f" {trial.value:.6g} " in text
    for curve in full_report.stability:
        assert f" {curve.jsd[-1]:.6g} " in text
    assert "Numbers (120 rows)" in text


def test_page_loads_nothing(full_html: str, full_page: Page) -> None:
    html, page = full_html, full_page
    assert not page.tags("script")
    assert not page.tags("link")
    assert not page.tags("img")
    loading = ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background")
    for _, attributes in page.elements:
        for name in loading:
            assert (attributes.get(name) or "#").startswith("#")
    assert "http" not in html
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_ids_are_unique_and_references_resolve(full_html: str, full_page: Page) -> None:
    html = full_html
    ids = [attributes["id"] for _, attributes in full_page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)


ATTACK = """</script></style></title><script>alert(1)</script>"'><img src=x onerror=alert(2)>&lt;]]>"""


def _attack(value: Any) -> Any:
    """The value with the attack in every text and key in it."""
    if isinstance(value, str):
        return value + ATTACK
    if isinstance(value, tuple | list):
        return type(value)(_attack(item) for item in value)
    return value


def test_every_text_is_escaped(full_report: ReportContent) -> None:
    metric = Metric(None, ATTACK)
    warned = Metric(0.5, ATTACK, (0.4, 0.6))
    search = full_report.searches[0]
    trials = tuple(
        TrialRow(t.number, t.state, t.value, {name + ATTACK: ATTACK for name in t.params}, t.epochs, ATTACK)
        for t in search.trials
    )
    attacked = ReportContent(
        title=ATTACK,
        notices=_attack(full_report.notices),
        facts=_attack(full_report.facts),
        protocol=_attack(full_report.protocol),
        headline=(
            HeadlineRow(ATTACK, warned, (Reference(ATTACK, warned), Reference(ATTACK, metric)), ATTACK),
            HeadlineRow(ATTACK, metric, note=ATTACK),
        ),
        figures=tuple(
            Figure(f.kind, ATTACK, {key: _attack_names(value) for key, value in f.data.items()})
            for f in full_report.figures
        ),
        searches=(replace(search, name=ATTACK, metric=ATTACK, trials=trials, importance={ATTACK: 1.0}),) * 2,
        stability=full_report.stability,
        ledger=({ATTACK: ATTACK},),
        configuration=ATTACK,
    )
    page = Page(render_report(attacked))
    assert not page.tags("script")
    assert not page.tags("img")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 30


def _attack_names(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [{k: _attack(v) if k == "name" else v for k, v in item.items()} for item in value]
    if isinstance(value, list) and value and isinstance(value[0], str):
        return _attack(value)
    return value


def test_what_is_not_given_is_left_out(render: Callable[[ReportContent], Page]) -> None:
    page = render(ReportContent("only a title"))
    assert not page.tags("section")
    assert not page.tags("a")
    assert "only a title" in page.text


def test_closed_and_unmentioned_ledgers_differ(render: Callable[[ReportContent], Page]) -> None:
    assert "has not been opened" in render(ReportContent("t", ledger=())).text
    assert "opened" not in render(ReportContent("t", ledger=None)).text


def test_nested_searches_are_told_apart(full_report: ReportContent, render: Callable[[ReportContent], Page]) -> None:
    few = replace(full_report.searches[0], trials=full_report.searches[0].trials[:3])
    searches = tuple(replace(few, name=f"outer fold {k}") for k in range(2))
    page = render(ReportContent("t", searches=searches))
    assert "outer fold 0" in page.text
    assert "outer fold 1" in page.text
    assert "outer fold 0" not in render(ReportContent("t", searches=searches[:1])).text


def test_leaderboard_folds_the_rest_away_and_marks_the_best(render: Callable[[ReportContent], Page]) -> None:
    trials = tuple(TrialRow(k, "COMPLETE", k / 100, {"model.x": k}, epochs=2) for k in range(14))
    page = render(ReportContent("t", searches=(SearchSummary("s", "C", "min", trials),)))
    assert "The other 4 trials" in page.text
    best = [row for row in page.tags("tr") if row.get("class") == "best"]
    assert len(best) == 1
    assert [head["title"] for head in page.tags("th") if head.get("title") == "model.x"]


def test_writing_replaces_the_whole_file(tmp_path: Path, full_report: ReportContent, full_html: str) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(path, full_report)
    assert path.read_text(encoding="utf-8") == full_html
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem):
        write_report(tmp_path / "file" / "report.html", ReportContent("t"))


def test_a_single_seed_without_anchor_is_enough(render: Callable[[ReportContent], Page]) -> None:
    page = render(ReportContent("t", stability=(StabilityCurve(False, 0, (1,), (0.2,)),)))
    assert "without anchor (1 seed)" in page.text
