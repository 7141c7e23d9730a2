"""Records, tables, the summary and the figures."""

import json
import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from cegen import report

DEFAULT = dict(
    objective="diet",
    case="C4",
    dim=5,
    n_classes=100,
    n_instances=1000,
    conditional="vmf",
    concentration=10.0,
    g_law="published",
    steps=2000,
)


def run(seed=0, **values):
    scores = dict(
        r2_z=0.98,
        r2_z_low=0.97,
        r2_z_high=0.99,
        official_r2_z=0.981,
        r2_w=0.99,
        r2_w_random=-0.06,
        official_r2_w=0.995,
        r2_x=0.711,
        excess=0.012,
        excess_se=0.003,
        beta=9.7,
        kappa=10.0,
        seconds=31.4,
    )
    return report.make_record(**(DEFAULT | scores | {"seed": seed} | values))


# --- records and files


def test_a_record_has_all_fields_and_plain_values():
    record = report.make_record(
        r2_z=np.float64(0.5), seed=np.int64(3), loss=torch.tensor(1.5), beta=float("inf"), versions="torch 2"
    )
    assert list(record) == [*report.FIELDS, "versions"]
    assert [record[k] for k in ("r2_z", "seed", "loss", "beta", "kappa")] == [0.5, 3, 1.5, None, None]
    assert {type(v) for v in record.values()} == {float, int, str, type(None)}


def test_records_come_back_as_they_were_written(tmp_path):
    runs = [run(0, extra="a"), run(1, excess=None, extra="b")]
    frame = report.read_records(report.write_records(tmp_path / "deep" / "runs.json", runs))
    back = [report.make_record(**row) for row in frame.to_dict("records")]
    assert back == runs
    assert list(frame)[: len(report.FIELDS)] == list(report.FIELDS)


def test_a_folder_is_searched_for_single_records_lists_and_documents(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.json").write_text(json.dumps(run(0)))
    (tmp_path / "b.json").write_text(json.dumps([run(1), run(2)]))
    report.write_records(tmp_path / "c.json", [run(3)])
    (tmp_path / "config.json").write_text(json.dumps({"dim": 5, "seed": 9}))
    (tmp_path / "numbers.json").write_text("[1, 2]")
    (tmp_path / "scalar.json").write_text("3")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "b.json").write_text(json.dumps(run(7)))
    assert sorted(report.read_records(tmp_path).seed) == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["", '{"objective": "di', '{"r2_z": NaN}', "\x00\x01"])
def test_a_broken_file_is_named(tmp_path, text):
    report.write_records(tmp_path / "good.json", [run()])
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json"):
        report.read_records(tmp_path)


def test_bytes_that_are_no_text_are_named_too(tmp_path):
    (tmp_path / "broken.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"broken\.json"):
        report.read_records(tmp_path / "broken.json")


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one record"):
        report.read_records(tmp_path)
    with pytest.raises(ValueError, match="exists"):
        report.read_records(tmp_path / "absent.json")
    (tmp_path / "config.json").write_text('{"dim": 5}')
    with pytest.raises(ValueError, match="at least one record"):
        report.read_records(tmp_path / "config.json")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = report.write_records(tmp_path / "runs.json", [run()])
    with pytest.raises(TypeError):
        report.write_records(path, [run(note=object())])
    assert len(report.read_records(path)) == 1 and [p.name for p in tmp_path.iterdir()] == ["runs.json"]


# --- tables


def test_paper_tables_are_fractions_with_the_papers_columns():
    diet, supervised = report.paper_table(2), report.paper_table(3)
    assert diet.shape == (10, 12) and supervised.shape == (10, 6)
    scores = pd.concat([diet.filter(like="r2").stack(), supervised.r2_z])
    assert scores.between(0.4, 1).all()
    assert diet.unit_w_mae_z.max() == 0.30
    assert diet.loc[7, ["concentration", "unit_w_r2_z", "free_w_r2_z"]].tolist() == [50, 0.45, 0.725]
    assert diet.assumptions_hold.tolist() == [True] * 8 + [False] * 2
    assert report.paper_table(4).groupby("dataset").size()["dsprites"] == 4
    with pytest.raises(ValueError, match="number=1"):
        report.paper_table(1)


def test_means_and_deviations_are_over_seeds_of_one_configuration():
    runs = [run(s, r2_z=r) for s, r in enumerate((0.97, 0.98, 0.99))] + [
        run(0, concentration=50.0, r2_z=0.7, excess=None)
    ]
    table = report.beside_paper(pd.DataFrame(runs))
    assert table.seeds.tolist() == [3, 1]
    assert table.r2_z.tolist() == pytest.approx([0.98, 0.7])
    assert table.r2_z_std[0] == pytest.approx(0.01) and math.isnan(table.r2_z_std[1]) and math.isnan(table.excess[1])
    assert table.paper_r2_z.tolist() == [0.99, 0.725] and table.paper_r2_w.tolist() == [0.999, 0.755]


@pytest.mark.parametrize(
    ("change", "r2_z", "r2_w"),
    [
        ({"case": "C1"}, 0.986, 0.999),
        ({"case": "C2"}, 0.990, 0.999),
        ({"case": "C3"}, 0.986, 0.999),
        ({"case": "C1", "n_classes": 10}, 0.886, 0.857),
        ({"conditional": "laplace", "concentration": 1}, 0.854, 0.995),
        ({"objective": "supervised", "n_instances": 10000, "n_classes": 10000}, 0.998, None),
        ({"objective": "supervised", "concentration": 50}, 0.655, None),
        ({"dim": 7}, None, None),
        ({"concentration": None}, None, None),
        ({"objective": "infonce"}, None, None),
    ],
)
def test_the_papers_figure_is_the_one_for_this_configuration(change, r2_z, r2_w):
    table = report.beside_paper(run(**change))
    found = [None if math.isnan(v) else v for v in table.loc[0, ["paper_r2_z", "paper_r2_w"]]]
    assert found == [r2_z, r2_w]


def test_no_records_make_no_table():
    with pytest.raises(ValueError, match="at least one record"):
        report.beside_paper([])


# --- summary


def test_summary_of_one_run():
    assert report.summary(run()).splitlines() == [
        "diet, case C4: d=5 |C|=100 N=1000 vmf(10), g published, 2000 steps, 1 seed",
        "  R² z̃→z       0.980             95 % interval 0.970 to 0.990",
        "  R² x→z       0.711             raw observations, before training",
        "  R² w→v       0.990             random codes -0.060",
        "  excess loss  0.0120            nats over the Bayes optimum (standard error 0.0030)",
        "  β            9.70              κ is 10.00",
        "  seconds      31.4",
    ]


def test_summary_of_several_seeds_and_configurations():
    text = report.summary([run(0, r2_z=0.97), run(1, r2_z=0.99), run(0, case="C1")])
    assert "2 seeds" in text and "0.980 ± 0.014" in text and "case C1" in text
    assert len(text.splitlines()) == 14


def test_summary_says_what_is_not_known():
    text = report.summary(report.make_record(objective="infonce", seed=0, r2_z=0.5))
    assert text.startswith("infonce:") and "None" not in text and "nan" not in text
    assert text.count("–") >= 5


# --- figures


def world(n=200, d=3, n_classes=12):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(n_classes, d, generator=generator), dim=1)
    label = torch.randint(n_classes, (n,), generator=generator)
    return vectors, vectors[label], label


def test_sphere_shows_all_points_and_colours_a_few_classes():
    vectors, z, label = world()
    axes = report.plot_sphere(vectors, z, label, n_coloured=3).axes[0]
    scatter = next(c for c in axes.collections if hasattr(c, "_offsets3d"))
    assert np.allclose(np.stack(scatter._offsets3d, axis=1), z)
    colours = np.round(
        scatter._facecolors[:, :3] if hasattr(scatter, "_facecolors") else scatter.get_facecolor()[:, :3], 3
    )
    assert len(np.unique(colours, axis=0)) == 4
    for count in (0, 50):
        assert report.plot_sphere(vectors.numpy(), z.numpy(), label.numpy(), n_coloured=count).axes


def test_history_shows_the_distance_from_the_floor():
    history = pd.DataFrame(
        {"step": [0, 1, 2], "loss": [5.0, 3.5, 2.9], "r2_z": [0.1, 0.5, 0.9], "r2_w": [None, 0.2, 0.3]}
    )
    loss, scores = report.plot_history(history, floor=3.0).axes
    assert loss.get_yscale() == "log" and loss.lines[0].get_ydata() == pytest.approx([2.0, 0.5])
    assert {len(line.get_xdata()) for line in scores.lines if len(line.get_xdata())} == {3, 2}
    (plain,) = report.plot_history(history[["step", "loss"]]).axes
    assert plain.get_yscale() == "linear" and plain.lines[0].get_ydata() == pytest.approx([5.0, 3.5, 2.9])


@pytest.mark.parametrize(("d", "panels"), [(1, 1), (3, 3), (7, 10), (20, 10)])
def test_recovery_has_a_panel_for_each_coordinate(d, panels):
    z = np.random.default_rng(0).normal(size=(50, d))
    figure = report.plot_recovery(z, z + 1, n_points=20)
    assert len(figure.axes) == panels
    assert np.allclose(figure.axes[0].collections[0].get_offsets(), np.stack([z[:20, 0], z[:20, 0] + 1], axis=1))


def test_figures_are_not_left_open_and_can_be_saved(tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figure = report.plot_sphere(*world())
    figure.savefig(tmp_path / "sphere.png")
    assert plt.get_fignums() == before and (tmp_path / "sphere.png").stat().st_size < 150_000


@pytest.mark.usefixtures("unchecked")
def test_figures_refuse_what_they_cannot_draw():
    vectors, z, label = world()
    with pytest.raises(ValueError, match="class_vectors.*3 columns"):
        report.plot_sphere(vectors[:, :2], z, label)
    with pytest.raises(ValueError, match="z=.*axes"):
        report.plot_sphere(vectors, z[0], label)
    with pytest.raises(ValueError, match="label=.*200"):
        report.plot_sphere(vectors, z, label[:10])
    with pytest.raises(ValueError, match="Align first"):
        report.plot_recovery(z, z[:, :2])
    with pytest.raises(ValueError, match="step and loss"):
        report.plot_history(pd.DataFrame({"step": [1]}))


def test_without_seaborn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "seaborn", None)
    with pytest.raises(ImportError, match=r"pip install 'cegen\[plots\]'"):
        report.plot_history(pd.DataFrame({"step": [0], "loss": [1.0]}))


def test_runs_that_differ_in_a_detail_are_not_averaged_and_the_detail_is_told():
    runs = [run(0, r2_z=0.99, label_noise=0.0), run(0, r2_z=0.10, label_noise=0.5)]
    table = report.beside_paper(runs)
    assert list(table.r2_z) == [0.99, 0.10]
    assert list(table.label_noise) == [0.0, 0.5]
    assert "label_noise 0.5" in report.summary(runs)


@pytest.mark.parametrize("change", [{"label_noise": 0.5}, {"class_vectors": "concentrated"}, {"g_law": "conditioned"}])
def test_a_world_that_the_paper_does_not_have_gets_none_of_its_figures(change):
    assert report.beside_paper([run(0)]).paper_r2_z[0] == 0.99
    assert math.isnan(report.beside_paper([run(0, **change)]).paper_r2_z[0])


def test_history_draws_the_measured_excess_where_there_is_one():
    history = pd.DataFrame({"step": [1, 2], "loss": [5.0, 4.0], "excess": [0.5, 0.25]})
    (line,) = report.plot_history(history).axes[0].lines
    assert list(line.get_ydata()) == [0.5, 0.25]


def probed(models=("trained", "pixels"), factors=("pose", "darker", "style")):
    rows = [(model, factor) for model in models for factor in factors]
    table = pd.DataFrame(rows, columns=["model", "factor"])
    table["accuracy_mean"] = [0.9, 0.6, None, 0.7, 0.8, None]
    return table.assign(
        ci_low=table.accuracy_mean - 0.2,
        ci_high=table.accuracy_mean + 0.2,
        n_positive=1234,
        stars_holm=["***", "", "", "", "**", ""],
    )


def test_probes_are_bars_with_intervals_counts_and_stars():
    (axes,) = report.plot_factors(probed()).axes
    bars = [bar for bar in axes.patches if bar.get_height() > 0]
    assert sorted(round(bar.get_height(), 6) for bar in bars) == [0.6, 0.7, 0.8, 0.9]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["pose (1,234)", "darker (1,234)"], (
        "skipped: no bar"
    )
    middles = sorted(bar.get_x() + bar.get_width() / 2 for bar in bars)
    drawn = sorted(
        (float(line[0, 0]), float(line[0, 1]), float(line[1, 1])) for c in axes.collections for line in c.get_segments()
    )
    assert np.allclose([x for x, _, _ in drawn], middles), "each interval in the middle of its bar"
    assert max(high for _, _, high in drawn) <= 1, "no accuracy above one"
    marks = [text.get_text() for text in axes.texts if text.get_text()]
    assert sorted(marks) == ["**", "***"]


def test_probes_without_counts_or_scores_are_refused():
    with pytest.raises(ValueError, match="n_positive"):
        report.plot_factors(probed().drop(columns="n_positive"))
    with pytest.raises(ValueError, match="summarise"):
        report.plot_factors(probed().assign(accuracy_mean=float("nan")))
    with pytest.raises(ValueError, match="one row for each model and factor"):
        report.plot_factors(pd.concat([probed(), probed()]))
