"""Scores: invariances, known values, controls that must fail, and refusals of bad input."""

import copy
import json
import pickle

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from cegen import probe

SHEAR = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0]])


def sphere(n, d, seed=0):
    points = np.random.default_rng(seed).normal(size=(n, d))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def halves(z, code):
    half = len(z) // 2
    return z[:half], code[:half], z[half:], code[half:]


def rotation(d, seed=0):
    return ortho_group.rvs(d, random_state=seed)


# --- invariances


@settings(max_examples=15, deadline=None)
@given(d=st.integers(2, 6), seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3))
def test_rigid_copies_are_perfect_at_any_scale(d, seed, scale):
    z = sphere(200, d, seed)
    code = scale * z @ rotation(d, seed)
    assert probe.r2_affine(*halves(z, code)) == pytest.approx(1, abs=1e-9)
    assert probe.r2_procrustes(*halves(z, code)) == pytest.approx(1, abs=1e-9)
    assert probe.orthogonality_error(z, code) == pytest.approx(0, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(d=st.integers(2, 6), seed=st.integers(0, 999), shift=st.floats(-5, 5))
def test_affine_r2_and_pearson_do_not_change_under_affine_maps_of_the_code(d, seed, shift):
    z, rng = sphere(200, d, seed), np.random.default_rng(seed)
    code = z + rng.normal(size=z.shape)
    moved = code @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)) / d) + shift
    assert probe.r2_affine(*halves(z, moved)) == pytest.approx(probe.r2_affine(*halves(z, code)), abs=1e-6)
    assert probe.pearson_per_factor(*halves(z, moved)) == pytest.approx(
        probe.pearson_per_factor(*halves(z, code)), abs=1e-6
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999))
def test_mcc_forgives_order_sign_scale_and_offset(seed):
    z, rng = sphere(200, 4, seed), np.random.default_rng(seed)
    code = z[:, rng.permutation(4)] * rng.choice([-1, 1], 4) * rng.uniform(0.1, 10, 4) + rng.normal(size=4)
    assert probe.mcc(*halves(z, code)) == pytest.approx(1, abs=1e-9)


def test_torch_and_numpy_of_any_precision_agree():
    z = sphere(400, 3)
    code = z @ SHEAR + 0.1 * np.random.default_rng(0).normal(size=z.shape)
    expected = probe.r2_procrustes(*halves(z, code))
    tensors = [torch.from_numpy(a).requires_grad_() for a in halves(z, code)]
    assert probe.r2_procrustes(*tensors) == expected
    assert probe.r2_procrustes(*(t.float() for t in tensors)) == pytest.approx(expected, abs=1e-5)


# --- known values and what each score must not forgive


def test_a_sheared_code_is_affine_and_not_rigid():
    z = sphere(1000, 3)
    assert probe.r2_affine(*halves(z, z @ SHEAR)) == pytest.approx(1)
    assert probe.r2_procrustes(*halves(z, z @ SHEAR)) < 0.8
    assert probe.orthogonality_error(z, z @ SHEAR) > 0.4


def test_an_offset_counts_where_no_intercept_is_allowed():
    z = sphere(1000, 3)
    code = z @ rotation(3) + 1
    assert probe.r2_affine(*halves(z, code)) == pytest.approx(1)
    assert probe.r2_affine(*halves(z, code), intercept=False) < 0.9
    assert probe.r2_procrustes(*halves(z, code)) < 0.5


def test_noise_costs_the_share_of_variance_that_it_has():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20000, 3))
    code = z + 0.5 * rng.normal(size=z.shape)
    assert probe.r2_affine(*halves(z, code)) == pytest.approx(1 / 1.25, abs=0.01)
    assert probe.pearson_per_factor(*halves(z, code)) == pytest.approx([0.8**0.5] * 3, abs=0.01)


def test_orthogonality_error_of_known_singular_values():
    z = sphere(500, 3)
    assert probe.orthogonality_error(z, 9 * z @ np.diag([3.0, 1.0, 2.0]) @ rotation(3)) == pytest.approx(1 / 3)
    assert probe.orthogonality_error(z, z @ np.diag([1.0, 0.0, 0.0])) == pytest.approx(4 / 3)


def test_procrustes_scale_is_fitted_once_and_not_per_column():
    z = sphere(1000, 3)
    assert probe.r2_procrustes(*halves(z, z @ np.diag([1.0, 1.0, 3.0]))) < 0.95


@pytest.mark.parametrize("score", ["r2_affine", "r2_procrustes"])
def test_random_codes_explain_nothing(score):
    z, code = sphere(4000, 5), np.random.default_rng(1).normal(size=(4000, 5))
    assert abs(getattr(probe, score)(*halves(z, code))) < 0.02


def test_random_codes_get_little_mcc_because_the_assignment_is_held_out():
    z, code = sphere(4000, 5), np.random.default_rng(1).normal(size=(4000, 30))
    assert probe.mcc(*halves(z, code)) < 0.05


def test_scores_are_out_of_sample():
    z, code = sphere(60, 5), np.random.default_rng(1).normal(size=(60, 25))
    assert probe.r2_affine(*halves(z, code)) < -1, "25 noise features fit 30 rows well and others badly"


def test_wide_codes_and_dead_units():
    z = sphere(400, 3)
    wide = np.concatenate([z @ rotation(3), np.zeros((400, 2))], axis=1)[:, [0, 3, 1, 4, 2]]
    assert probe.r2_procrustes(*halves(z, wide)) == pytest.approx(1)
    assert probe.orthogonality_error(z, wide) == pytest.approx(0, abs=1e-9)
    assert probe.mcc(*halves(z, np.concatenate([z, np.zeros((400, 2))], axis=1))) == pytest.approx(1)


def test_narrow_codes_lose_what_they_lack():
    z = sphere(400, 3)
    assert probe.mcc(*halves(z, z[:, :2])) == pytest.approx(2 / 3)
    assert probe.orthogonality_error(z, z[:, :2]) == pytest.approx(2 / 3)
    assert probe.r2_procrustes(*halves(z, z[:, :2])) == pytest.approx(2 / 3, abs=0.02)


def test_a_collapsed_code_is_scored_and_not_an_error():
    z = sphere(400, 3)
    report = probe.identifiability_report(z, np.zeros((400, 3)), n_bootstrap=5)
    assert report.r2_affine == pytest.approx(0, abs=0.05) and report.r2_procrustes == pytest.approx(0, abs=0.05)
    assert (report.mcc, report.pearson, report.orthogonality_error) == (0, 0, 1)
    assert all(np.isfinite(list(report.to_dict().values())))


# --- intervals


def test_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = probe.bootstrap_interval(
            np.mean, rng.normal(size=(60, 1)), n_bootstrap=200, level=0.9, generator=seed
        )
        hits += low <= 0 <= high
    assert 0.82 <= hits / 200 <= 0.96  # 0.9 ± 3 standard errors, the bootstrap of 60 rows being slightly too narrow


def test_bootstrap_keeps_rows_together_and_repeats_with_its_seed():
    z = sphere(100, 2)
    assert probe.bootstrap_interval(lambda a, b: np.abs(a - b).max(), z, z) == (0, 0)
    score = lambda a: a.mean(axis=0)  # noqa: E731
    first, again, other = (np.array(probe.bootstrap_interval(score, z, generator=g)) for g in (3, 3, 4))
    assert first.shape == (2, 2) and (first == again).all() and (first != other).all()
    generator = torch.Generator().manual_seed(3)
    assert (np.array(probe.bootstrap_interval(score, z, generator=generator)) == first).all()


def test_intervals_hold_their_score_and_shrink_with_the_rows():
    widths = []
    for n in (200, 3200):
        z = sphere(n, 3)
        r2 = probe.identifiability_report(z, z + 0.3 * sphere(n, 3, seed=1)).r2_affine
        assert r2.low <= r2 <= r2.high
        widths.append(r2.high - r2.low)
    assert widths[1] < widths[0] / 2


def test_a_score_is_a_float_with_ends():
    score = probe.Score(0.5, 0.4, 0.6)
    assert score == 0.5 and f"{score:.2f}" == "0.50" and repr(score) == "0.500 [0.400, 0.600]"
    assert repr(probe.Score(0.5)) == "0.500"
    assert json.dumps(score) == "0.5"
    for twin in (copy.deepcopy(score), pickle.loads(pickle.dumps(score))):
        assert (twin, twin.low, twin.high) == (0.5, 0.4, 0.6)


# --- the report


def test_report_holds_the_single_scores_of_its_split():
    z = sphere(500, 3)
    code = z @ SHEAR + 0.2 * sphere(500, 3, seed=1)
    report = probe.identifiability_report(z, code, protocol="official", n_bootstrap=10)
    parts = halves(z, code)
    assert report.r2_affine == probe.r2_affine(*parts)
    assert report.r2_procrustes == probe.r2_procrustes(*parts)
    assert report.mcc == pytest.approx(probe.mcc(*parts))
    assert report.orthogonality_error == probe.orthogonality_error(z, code)
    assert [float(p) for p in report.pearson_per_factor] == pytest.approx(probe.pearson_per_factor(*parts))
    assert report.pearson == pytest.approx(np.mean(report.pearson_per_factor))


def test_report_turns_into_dict_frame_text_and_html():
    z = sphere(100, 3)
    report = probe.identifiability_report(z, z, test_size=0.3, n_bootstrap=10)
    flat = report.to_dict()
    assert (report.n_train, report.n_test, report.protocol) == (70, 30, "sound")
    assert {"r2_affine", "r2_affine_low", "r2_affine_high", "pearson_2_high"} <= flat.keys()
    assert all(type(value) is float for value in flat.values())
    assert report.to_frame().loc["mcc", "value"] == report.mcc
    assert "r2_procrustes" in repr(report) and "seed 0" in repr(report) and "<table" in report._repr_html_()


def test_report_depends_on_its_seed_and_on_no_other_randomness():
    z, code = sphere(300, 3), sphere(300, 3) + sphere(300, 3, seed=1)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (probe.identifiability_report(z, code, seed=s, n_bootstrap=10).to_dict() for s in (0, 0, 1))
    assert first == again and first["r2_affine"] != other["r2_affine"]
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002


def test_the_sound_report_names_no_published_score():
    z = sphere(100, 3)
    assert probe.identifiability_report(z, z, n_bootstrap=5).official is None
    assert not any("official" in key for key in probe.identifiability_report(z, z, n_bootstrap=5).to_dict())


# --- the published protocol and its traps


def test_published_orthogonal_r2_accepts_any_matrix():
    z, matrix = sphere(1000, 5), np.random.default_rng(0).normal(size=(5, 5))
    assert probe.official_scores(z, z @ matrix, unit_rows=True, kappa=10.0).r2 == pytest.approx(1)
    assert probe.r2_procrustes(*halves(z, z @ matrix)) < 0.8


def test_published_error_depends_on_the_scale():
    z, matrix = sphere(1000, 5), np.random.default_rng(0).normal(size=(5, 5))
    assert probe.official_scores(z, 50 * z @ rotation(5), unit_rows=True, kappa=50.0).mae == pytest.approx(0, abs=1e-9)
    assert probe.official_scores(z, z @ rotation(5), unit_rows=True, kappa=50.0).mae == pytest.approx(0.98)
    assert probe.official_scores(z, 1e6 * z @ matrix, unit_rows=True, kappa=50.0).mae == pytest.approx(0.02, abs=1e-4)
    assert probe.orthogonality_error(z, 1e6 * z @ matrix) == pytest.approx(probe.orthogonality_error(z, z @ matrix))


def test_published_scores_use_the_first_half_to_fit_and_an_intercept_for_free_rows_only():
    z = sphere(1000, 3)
    code = z + 1
    free, unit = (probe.official_scores(z, code, unit_rows=u) for u in (False, True))
    assert free.r2 == probe.r2_affine(*halves(z, code)) and free.mae is None
    assert unit.r2 == probe.r2_affine(*halves(z, code), intercept=False) and unit.r2 < 0.9


@pytest.mark.parametrize(
    ("n_classes", "dim", "low", "high"),
    [(4, 5, 0.999, 1), (5, 5, 0.999, 1), (10, 5, 0.45, 0.7), (100, 5, 0.03, 0.07), (100, 20, 0.15, 0.25)],
)
def test_published_row_score_rewards_random_codes(n_classes, dim, low, high):
    label = np.arange(1000) % n_classes
    report = probe.row_report(sphere(n_classes, dim), sphere(1000, dim, seed=1), label)
    assert low <= report.official_random_codes <= high + 1e-9
    assert report.random_codes is None or report.random_codes < 0


def test_published_row_score_does_not_depend_on_how_instances_are_ordered():
    vectors, label = sphere(20, 5), np.arange(200) % 20
    rows = sphere(20, 5, seed=3)[label] + 0.1 * sphere(200, 5, seed=4)
    order = np.argsort(label, kind="stable")
    first, second = probe.row_report(vectors, rows, label), probe.row_report(vectors, rows[order], label[order])
    assert first.official.r2 == pytest.approx(second.official.r2)
    half = probe.r2_affine(vectors[label[:100]], rows[:100], vectors[label[100:]], rows[100:])
    assert first.official.r2 == pytest.approx(half)


# --- rows


def test_linear_rows_are_recovered_and_random_ones_are_not():
    vectors, label = sphere(100, 5), np.arange(1000) % 100
    matrix = np.random.default_rng(0).normal(size=(5, 5))
    good = probe.row_report(vectors, vectors[label] @ matrix + 2, label)
    assert (good.r2_w, good.collapse) == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    assert -0.2 < good.random_codes < 0 and -0.1 < good.random_rows < 0.01
    assert probe.row_report(vectors, vectors[label] @ matrix + 2, label, intercept=False).r2_w < 0.9
    assert probe.row_report(vectors, sphere(100, 5, seed=9)[label], label).r2_w < 0, "collapsed without geometry"


def test_row_score_holds_whole_classes_out():
    vectors, label = sphere(30, 3), np.arange(3000) % 30
    memory = np.eye(30)[label]  # every class has a coordinate of its own: perfect memory, no geometry
    report = probe.row_report(vectors, memory, label, n_random=1, intercept=False)
    assert report.official.r2 == pytest.approx(1) and report.r2_w is None
    narrow = np.random.default_rng(0).normal(size=(30, 20))[label]
    report = probe.row_report(vectors, narrow, label, n_random=1)
    assert report.official.r2 > 0.5 and report.r2_w < 0


def test_controls_score_like_the_codes_they_stand_for():
    vectors, label = sphere(40, 3), np.repeat(np.arange(40), 1 + np.arange(40) % 5)
    codes = [np.random.default_rng(seed).normal(size=(40, 3))[label] for seed in range(30)]
    draws = [probe.row_report(vectors, code, label, n_random=30 if i == 0 else 1) for i, code in enumerate(codes)]
    assert np.mean([r.r2_w for r in draws]) == pytest.approx(draws[0].random_codes, abs=0.1)


def test_collapse_is_the_within_class_share_of_the_spread():
    vectors, label = sphere(50, 4), np.arange(5000) % 50
    centres, noise = (np.random.default_rng(s).normal(size=(n, 4)) for s, n in ((0, 50), (1, 5000)))
    shares = [probe.row_report(vectors, centres[label] + s * noise, label, n_random=1).collapse for s in (0, 0.5, 1e6)]
    assert shares == [pytest.approx(0, abs=1e-12), pytest.approx(0.2, abs=0.05), pytest.approx(0.99, abs=0.01)]
    assert probe.row_report(vectors, np.ones((5000, 4)), label, n_random=1).collapse == 0


@pytest.mark.parametrize(("n_classes", "enough"), [(6, False), (7, False), (8, True), (10, True)])
def test_too_few_classes_are_reported_and_not_scored(n_classes, enough):
    vectors, label = sphere(n_classes, 5), np.arange(100) % n_classes
    report = probe.row_report(vectors, vectors[label], label)
    assert (report.r2_w is not None) == enough == (report.reason == "")
    assert "more classes are needed" in report.reason or enough
    json.dumps(report.to_dict(), allow_nan=False)


def test_degenerate_worlds_give_none_and_no_exception():
    one = probe.row_report(sphere(1, 5), sphere(20, 5), np.zeros(20, dtype=int))
    few = probe.row_report(sphere(3, 8), sphere(3, 8, seed=1), np.arange(3))
    assert (one.r2_w, one.official, few.r2_w, few.official) == (None,) * 4
    for report in (one, few):
        json.dumps(report.to_dict(), allow_nan=False)
        assert "–" in repr(report) and "–" in report._repr_html_()


def test_supervised_rows_are_one_for_each_class():
    vectors = sphere(100, 5)
    report = probe.row_report(torch.from_numpy(vectors), torch.from_numpy(3 * vectors), torch.arange(100))
    assert report.r2_w == pytest.approx(1) and report.n_rows == report.n_classes == 100


# --- bad input

Z = sphere(40, 3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("z", "z_tilde", "message"),
    [
        (Z[:, 0], Z, r"z=.*\(40,\).*reshape\(-1, 1\)"),
        (Z[:0], Z[:0], "at least 2 row"),
        (Z[:1], Z[:1], "at least 2 row"),
        (Z[:, :0], Z, "1 column"),
        (Z, Z[:30], "30 rows.*as long as z, which has 40 rows"),
        (Z, Z.T, "transposed"),
        (Z.T, Z, "transposed"),
        (Z.T, Z.T, r"pass z\.T"),
        (np.where(Z == Z[7, 1], np.nan, Z), Z, r"index \(7, 1\)"),
        (Z, np.where(Z == Z[7, 1], np.inf, Z), "z_tilde.*finite"),
        (Z * [1, 1, 0], Z, "constant in column 2"),
    ],
)
def test_bad_arrays_are_refused_with_a_reason(z, z_tilde, message):
    for score in (probe.identifiability_report, probe.orthogonality_error):
        with pytest.raises(ValueError, match=message):
            score(z, z_tilde)
    with pytest.raises(ValueError, match=message):
        probe.official_scores(z, z_tilde, unit_rows=False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("score", [probe.r2_affine, probe.r2_procrustes, probe.mcc, probe.pearson_per_factor])
def test_train_and_test_must_fit_together(score):
    with pytest.raises(ValueError, match="z_tilde_test.*3 columns wide"):
        score(Z, Z, Z, Z[:, :2])
    with pytest.raises(ValueError, match="z_test.*3 columns wide"):
        score(Z, Z, Z[:, :2], Z)
    with pytest.raises(ValueError, match="z_train.*constant"):
        score(np.ones_like(Z), Z, Z, Z)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_size": 0.0}, "test_size=0.0"),
        ({"test_size": 1.0}, "test_size=1.0"),
        ({"test_size": 1.5}, "test_size=1.5"),
        ({"test_size": float("nan")}, "test_size=nan"),
        ({"test_size": 0.01}, "2 rows on each side"),
        ({"protocol": "offical"}, "'sound', 'official'.*Did you mean 'official'"),
        ({"seed": -1}, "seed=-1"),
        ({"n_bootstrap": 0}, "n_bootstrap=0"),
        ({"level": 1.0}, "level=1.0"),
        ({"protocol": "official", "kappa": 0.0}, "kappa=0.0"),
    ],
)
def test_bad_settings_are_refused_with_a_reason(arguments, message):
    with pytest.raises(ValueError, match=message):
        probe.identifiability_report(Z, Z, **arguments)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("vectors", "rows", "label", "message"),
    [
        (sphere(4, 3), Z, np.arange(40) % 5, "one class vector for each class"),
        (sphere(4, 3), Z, np.arange(39) % 4, "as long as instance_class"),
        (sphere(4, 3), Z.T, np.arange(40) % 4, "rows looks transposed"),
        (sphere(4, 3), Z, np.arange(40) / 40, "one integer class for each row"),
        (sphere(4, 3), Z, (np.arange(40) % 4)[:, None], "one integer class for each row"),
        (sphere(4, 3), Z, np.arange(40) % 4 - 1, "classes -1 to 2"),
        (sphere(4, 3), Z * np.nan, np.arange(40) % 4, "rows.*finite"),
    ],
)
def test_bad_rows_are_refused_with_a_reason(vectors, rows, label, message):
    with pytest.raises(ValueError, match=message):
        probe.row_report(vectors, rows, label)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("arguments", [{"n_folds": 1}, {"n_random": 0}, {"seed": 0.5}])
def test_bad_row_settings_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        probe.row_report(sphere(40, 3), Z, np.arange(40), **arguments)


@pytest.mark.usefixtures("unchecked")
def test_bootstrap_refuses_arrays_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"lengths \[40, 30\]"):
        probe.bootstrap_interval(np.mean, Z, Z[:30])
    with pytest.raises(ValueError, match="arrays"):
        probe.bootstrap_interval(np.mean)


def test_shapes_in_the_signatures_are_true_and_checked_here():
    for arrays in (halves(Z, Z[:, :2]), [torch.from_numpy(a) for a in halves(Z, Z[:, :2])]):
        for score in (probe.r2_affine, probe.r2_procrustes, probe.mcc, probe.pearson_per_factor):
            score(*arrays)
        with pytest.raises(jaxtyping.TypeCheckError):
            probe.r2_affine(arrays[0], arrays[1][:-1], *arrays[2:])


def test_ridge_solves_the_penalised_normal_equations():
    rng = np.random.default_rng(0)
    z, code = rng.normal(size=(300, 2)), rng.normal(size=(300, 7)) + 3
    code[:, :2] += z
    train, test = slice(0, 200), slice(200, 300)
    found = probe.pearson_per_factor(z[train], code[train], z[test], code[test], ridge=0.5)
    centred = code[train] - code[train].mean(axis=0)
    penalty = 0.5 * code[train].var(axis=0).mean() * 200
    weights = np.linalg.solve(centred.T @ centred + penalty * np.eye(7), centred.T @ z[train])
    decoded = code[test] @ weights
    assert found == pytest.approx([np.corrcoef(z[test, k], decoded[:, k])[0, 1] for k in range(2)], abs=1e-9)
    alone = probe.pearson_per_factor(z[train, :1], code[train], z[test, :1], code[test], ridge=0.5)
    assert alone == pytest.approx(found[:1], abs=1e-9)


def test_circular_score_is_that_of_sine_and_cosine_and_knows_no_cut():
    rng = np.random.default_rng(0)
    turn = rng.uniform(0, 7.0, size=(600, 2))
    code = np.concatenate([np.sin(2 * np.pi * turn / 7), np.cos(2 * np.pi * turn / 7)], axis=1) + rng.normal(
        size=(600, 4)
    )
    scores = [
        probe.r2_circular(shifted[:300], code[:300], shifted[300:], code[300:], period=7.0)
        for shifted in (turn, (turn + 2.5) % 7.0)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-9)
    # Half of the variance of each is signal with variance 1/2 against noise of variance 1.
    assert scores[0] == pytest.approx([1 / 3, 1 / 3], abs=0.08)


def test_analogies_close_for_linear_codes_and_not_for_others():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(400, 4))
    first, second = np.eye(4)[0], np.eye(4)[1]
    corners = [a, a + first, a + first + second, a + second]
    matrix, shift = rng.normal(size=(4, 6)), rng.normal(size=6)
    linear = [c @ matrix + shift for c in corners]
    assert probe.parallelogram_error(*linear) == pytest.approx(0, abs=1e-12)
    assert probe.retrieval_accuracy(*linear) == 1
    bent = [np.sin(c @ matrix) for c in corners]
    assert probe.parallelogram_error(*bent) > 0.1
    assert probe.retrieval_accuracy(*bent) < 0.9
    unrelated = rng.normal(size=(4, 400, 6))
    assert probe.parallelogram_error(*unrelated) == pytest.approx(2, abs=0.15)
    assert probe.retrieval_accuracy(*unrelated) < 0.02
    with pytest.raises(ValueError, match="collapsed"):
        probe.parallelogram_error(*[np.ones((5, 2))] * 4)
    # Codes that do not move with the second factor find their own first corner as well as the fourth.
    blind = [np.round(c[:, :1], 2) for c in corners]
    assert probe.retrieval_accuracy(*blind) == 0


def test_half_precision_activations_are_welcome():
    z = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    code = (z @ torch.tensor([[1.0, 2.0], [-1.0, 0.5]])).bfloat16()
    assert probe.r2_affine(z[:100], code[:100], z[100:], code[100:]) > 0.999
