"""The boards as Grafana would load them: structure, units, links, and metrics that exist in code."""

import json
import re
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from hypothesis import given
from hypothesis import strategies as st
from instep_dashboards.cli import main
from instep_dashboards.generated import BOARDS, files
from instep_dashboards.panels import GRID_WIDTH, HEIGHT, Board, Panel, Query, Row, Shape, Unit, as_json
from instep_dashboards.rules import RULES

from tests.dashboards.names import existing, filled, named

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "dashboards" / "generated"
GRAFANA_UNITS = {"short", "none", "s", "percentunit", "Bps", "cps", "celsius", "watt", "bytes"}

plugins.register_default_plugins()

every_board = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)


def panels(made: dict) -> list[dict]:
    return [panel for panel in made["panels"] if panel["type"] != "row"]


def slugs(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+?) *$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_documented(target: str) -> bool:
    name, _, anchor = target.partition("#")
    page = ROOT / "docs" / name
    return page.is_file() and (not anchor or anchor in slugs(page))


def cells(panel: dict) -> set[tuple[int, int]]:
    place = panel["gridPos"]
    columns = range(place["x"], place["x"] + place["w"])
    return {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}


def test_the_generated_files_are_those_of_the_code():
    assert main(["generate", "--check", "--out", str(GENERATED)]) == 0, "run instep dashboards generate"
    there = {str(path.relative_to(GENERATED)) for path in GENERATED.rglob("*") if path.is_file()}
    assert there == set(files())


def test_a_changed_or_missing_file_is_told(tmp_path, capsys):
    assert main(["generate", "--out", str(tmp_path)]) == 0
    assert main(["generate", "--check", "--out", str(tmp_path)]) == 0
    (tmp_path / "job.json").write_text((tmp_path / "job.json").read_text().replace("Step time", "Time of a step"))
    (tmp_path / "rules/instep.yaml").unlink()
    capsys.readouterr()
    assert main(["generate", "--check", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "job.json is missing or differs" in said
    assert "instep.yaml is missing or differs" in said
    assert "fleet.json" not in said


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["generate", "--out", str(tmp_path / "file")]) == 3
    assert capsys.readouterr().err.startswith(f"instep dashboards: Cannot write {tmp_path / 'file'}")


@every_board
def test_panel_ids_are_unique_and_no_two_panels_overlap(board):
    made = as_json(board, "docs")
    ids = [panel["id"] for panel in made["panels"]]
    assert len(ids) == len(set(ids)) > 0
    taken: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        mine = cells(panel)
        assert not taken & mine, panel["title"]
        assert all(0 <= x < GRID_WIDTH for x, _ in mine), panel["title"]
        taken |= mine


@given(st.lists(st.lists(st.tuples(st.integers(1, GRID_WIDTH), st.sampled_from(Shape)), max_size=9), max_size=4))
def test_panels_of_any_width_are_placed_without_overlap(rows):
    drawn = tuple(
        Row("row", tuple(Panel("p", "d", (Query("up"),), docs="README.md", shape=shape, width=w) for w, shape in row))
        for row in rows
    )
    made = as_json(Board("u", "t", "d", drawn), "docs")
    taken: list[tuple[int, int]] = [cell for panel in made.get("panels", []) for cell in cells(panel)]
    assert len(taken) == len(set(taken))
    wanted = sum(w * HEIGHT[shape] for row in rows for w, shape in row) + len(rows) * GRID_WIDTH
    assert len(taken) == wanted


@every_board
def test_every_panel_says_what_it_means_in_which_unit_and_what_to_do(board):
    for panel in panels(as_json(board, "https://docs.example.org/instep/")):
        where = f"{board.title} / {panel['title']}"
        assert len(panel["title"]) > 3
        assert len(panel["description"].split()) >= 5, where
        assert panel["description"].endswith("."), where
        assert panel["fieldConfig"]["defaults"]["unit"] in GRAFANA_UNITS, where
        (link,) = panel["links"]
        assert is_documented(link["url"].removeprefix("https://docs.example.org/instep/")), f"{where}: {link['url']}"


def test_every_unit_is_one_of_grafanas():
    assert {unit.value for unit in Unit} <= GRAFANA_UNITS


@every_board
def test_grafanas_own_types_read_the_board_and_lose_nothing(board):
    """Every field is one that Grafana 11.6 knows; only the annotations' title is the data source's own."""
    made = as_json(board, "docs")
    for mark in made["annotations"].get("list", []):
        assert mark.pop("titleFormat")
    assert json.loads(json.dumps(Dashboard.from_json(made), cls=JSONEncoder)) == made
    assert made["schemaVersion"] == 41


@every_board
def test_titles_are_unique_within_a_row(board):
    for row in board.rows:
        titles = [panel.title for panel in row.panels]
        assert len(titles) == len(set(titles))


@every_board
def test_everything_asks_the_chosen_data_source(board):
    made = as_json(board, "docs")
    first, *others = made["templating"]["list"]
    assert (first["type"], first["name"], first["query"]) == ("datasource", "datasource", "prometheus")
    targets = [target for panel in panels(made) for target in panel["targets"]]
    asked = [*panels(made), *targets, *others, *made["annotations"].get("list", [])]
    assert {json.dumps(one["datasource"], sort_keys=True) for one in asked} == {
        '{"type": "prometheus", "uid": "${datasource}"}'
    }
    for panel in panels(made):
        names = [target["refId"] for target in panel["targets"]]
        assert len(names) == len(set(names)) >= 1


@every_board
def test_every_variable_in_a_query_is_one_of_the_board(board):
    known = {"datasource", "__rate_interval", "__interval", *(name for name, _ in board.variables)}
    for where, expression in board.expressions():
        assert set(re.findall(r"\$(\w+)", expression)) <= known, where


@every_board
def test_every_metric_of_a_panel_exists_in_code(board):
    for where, expression in board.expressions():
        names = named(filled(expression, "gpt"))
        assert names, where
        assert names <= existing(), where
    for _, query in board.variables:
        assert set(re.findall(r"instep_\w+", query)) <= existing()


def test_a_metric_that_nobody_exposes_would_be_noticed():
    nested = 'topk(3, scalar(max(instep_job_step{job="a"})) - sum by (x) (rate(instep_made_up_total[5m] offset 1m)))'
    assert named(nested) - existing() == {"instep_made_up_total"}


def test_every_metric_of_a_rule_exists_in_code():
    for rule in RULES:
        names = named(rule.expr)
        assert names, rule.name
        assert names <= existing(), rule.name


def test_every_rule_says_how_bad_it_is_and_where_its_runbook_is():
    kinds = sorted(page.stem for page in (ROOT / "docs" / "runbooks").glob("*.md"))
    assert "hang" in kinds
    for rule in RULES:
        for kind in kinds if "{{" in rule.docs else [""]:
            target = rule.runbook("docs").removeprefix("docs/").replace("{{ $labels.kind }}", kind)
            assert is_documented(target), f"{rule.name}: {target}"
        assert rule.name.startswith("Instep")
        assert rule.description.endswith(".")


def test_the_rule_file_holds_what_the_code_says():
    (group,) = yaml.safe_load(files()["rules/instep.yaml"])["groups"]
    assert [rule["alert"] for rule in group["rules"]] == [rule.name for rule in RULES]
    for written, rule in zip(group["rules"], RULES, strict=True):
        assert (written["expr"], written["for"]) == (rule.expr, rule.for_)
        assert written["labels"] == {"severity": rule.severity.value}
        assert written["annotations"]["summary"] == rule.summary
        assert written["annotations"]["description"] == rule.description
