"""The tool behind `make tables`: every row of the paper is asked for, and the committed tables are what the rows' files say."""

import importlib.util
import json

import pytest

from cegen import Config
from cegen.report import paper_table


@pytest.fixture(scope="module")
def tables(root):
    "tools/tables.py as a module."
    spec = importlib.util.spec_from_file_location("tables", root / "tools" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("number", "cases"), [(2, 2), (3, 1)])
def test_every_row_of_the_paper_is_run_under_both_laws(tables, number, cases):
    rows = tables.rows(number)
    assert len(rows) == 2 * cases * len(paper_table(number))
    assert len({tables.name_of(number, row) for row in rows}) == len(rows)
    for row in rows:
        config = Config(**row, seeds=tables.SEEDS)
        assert config.objective == {2: "diet", 3: "supervised"}[number]


def test_committed_tables_are_the_means_of_the_rows_files(tables, root, tmp_path):
    committed = sorted((root / "results").glob("table?.json"))
    assert committed
    for path in committed:
        tables.gather(int(path.stem[-1]), tmp_path)
        fresh, kept = (
            json.loads((folder / path.name).read_text(encoding="utf-8")) for folder in (tmp_path, path.parent)
        )
        assert fresh == kept
        assert {record["n_seeds"] for record in kept["records"]} == {len(tables.SEEDS)}


def test_a_row_is_run_again_if_it_was_run_otherwise(tables):
    done = [row for row in tables.rows(2) if tables.is_done(2, row)]
    assert done
    assert not tables.is_done(2, {**done[0], "steps": 17})
    assert not tables.is_done(2, {**done[0], "n_classes": 7})
