"""Studies: what is on disk and when, what is refused, and how a killed study goes on."""

import json

import pytest
import torch

from cegen import ClusterDGP, InvertibleMLP, SyntheticSource
from cegen.study import Study, measure, plot_study, run_study, small_learner
from cegen.theory import optimal_model

SETTINGS = {"steps": 5, "batch_size": 32}
DRAFT = Study("kappa", "Does κ matter?", "It does not.", SETTINGS)
VALUES = [{"kappa": 3.0}, {"kappa": 10.0}]


def make(value, seed):
    source = SyntheticSource(ClusterDGP(3, 8, 16, kappa=value["kappa"], seed=seed), InvertibleMLP(3, seed=seed))
    return source, *small_learner(source, seed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    return folder, run_study(DRAFT, make, VALUES, [0, 1], folder)


def test_one_record_for_each_value_and_seed(finished):
    folder, study = finished
    assert [(r["kappa"], r["seed"]) for r in study.records] == [(3.0, 0), (3.0, 1), (10.0, 0), (10.0, 1)]
    stored = Study.load(folder / "kappa.json")
    assert stored.records == study.records
    assert (stored.prediction, stored.held) == ("It does not.", None)
    assert stored.environment["torch"] == torch.__version__
    assert list(study.means("kappa").index) == [3.0, 10.0]


def test_prediction_is_on_disk_before_the_first_run(tmp_path):
    def see(value, seed):
        assert Study.load(tmp_path / "kappa.json").prediction == "It does not."
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(DRAFT, see, VALUES, [0], tmp_path)
    assert Study.load(tmp_path / "kappa.json").records == []


def test_killed_study_repeats_nothing_and_ends_as_an_undisturbed_one(finished, tmp_path):
    _, whole = finished
    made = []

    def once(value, seed):
        made.append((value["kappa"], seed))
        if len(made) == 3:
            raise KeyboardInterrupt
        return make(value, seed)

    with pytest.raises(KeyboardInterrupt):
        run_study(DRAFT, once, VALUES, [0, 1], tmp_path)
    study = run_study(DRAFT, once, VALUES, [0, 1], tmp_path)
    assert made == [(3.0, 0), (3.0, 1), (10.0, 0), (10.0, 0), (10.0, 1)]

    def numbers(study):
        return [{name: v for name, v in r.items() if name != "seconds"} for r in study.records]

    assert numbers(study) == numbers(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": "It does."}, "has prediction 'It does.', not 'It does not.'"),
        ({"question": "Why?"}, "has question"),
        ({"settings": {"steps": 6, "batch_size": 32}}, "has settings"),
    ],
)
def test_nothing_is_changed_after_the_runs(finished, change, message):
    folder, study = finished
    changed = Study(**{**vars(DRAFT), **change})
    with pytest.raises(ValueError, match=message):
        run_study(changed, make, VALUES, [0], folder)
    assert Study.load(folder / "kappa.json").records == study.records


def test_verdict_is_kept(finished, tmp_path):
    study = finished[1].conclude(False, "it does, by 0.1")
    study.save(tmp_path)
    stored = Study.load(tmp_path / "kappa.json")
    assert (stored.held, stored.verdict) == (False, "it does, by 0.1")


def test_a_judged_study_that_is_begun_again_stays_as_it_was_and_further_runs_ask_for_a_new_verdict(finished, tmp_path):
    finished[1].conclude(True, "as it was said").save(tmp_path)
    again = run_study(DRAFT, make, VALUES, [0, 1], tmp_path)
    assert (again.held, again.verdict, again.environment) == (True, "as it was said", finished[1].environment)
    more = run_study(DRAFT, make, VALUES, [0, 1, 2], tmp_path)
    assert len(more.records) == 6 and (more.held, more.verdict) == (None, "")


def test_values_that_json_changes_or_that_hold_others_are_run_once(tmp_path):
    draft = Study("pairs", "?", ".", {**SETTINGS, "callbacks": ()})
    values = [{"kappa": 3.0, "pair": (1, 2)}, {"kappa": 3.0}]
    first = run_study(draft, make, values, [0], tmp_path)
    assert len(first.records) == 2
    assert run_study(draft, make, values, [0], tmp_path).records == first.records


def test_what_is_varied_is_named_unlike_the_numbers_of_a_run(tmp_path):
    with pytest.raises(ValueError, match="values=.*kappa.*named unlike"):
        run_study(DRAFT, make, VALUES, [0], tmp_path, extra=lambda source, result: {"kappa": 1.0})


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "kappa"}', '{"colour": 1}'])
def test_broken_files_are_named(tmp_path, content):
    path = tmp_path / "kappa.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"kappa\.json"):
        Study.load(path)


def test_bad_input(finished, tmp_path, unchecked):
    _, study = finished
    with pytest.raises(ValueError, match="seeds=0"):
        run_study(DRAFT, make, VALUES, [], tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'kappa'"):
        study.means("kapa")
    with pytest.raises(ValueError, match="Did you mean 'r2_z'"):
        plot_study(study, "kappa", scores=("r2z",))
    with pytest.raises(ValueError, match="kappa.json"):
        Study.load(tmp_path / "kappa.json")


def test_figure_has_a_panel_for_each_score(finished):
    figure = plot_study(finished[1], "kappa", scores=("r2_z", "excess", "orthogonality_error"))
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "R² of the latents",
        "excess loss in nats",
        "orthogonality error",
    ]


def test_the_optimum_is_measured_as_the_optimum():
    source = SyntheticSource(ClusterDGP(3, 12, 24, kappa=10.0), InvertibleMLP(3))
    scores = measure(source, *optimal_model(source, "C1"), seed=0)
    assert scores["findings"] == ["at the optimum"]
    assert scores["r2_z"] > 0.9999 and scores["r2_procrustes"] > 0.9999 and abs(scores["excess"]) < 1e-4
    json.dumps(scores, allow_nan=False)
