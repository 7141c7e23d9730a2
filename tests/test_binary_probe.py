"""Binary probes: planted directions, chance, groups, leaks, the published procedure, tests of significance, directions."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler

from cegen import binary_probe
from cegen.binary_probe import (
    Probes,
    adjust,
    corrected_t,
    cosine_matrix,
    cosine_pairs,
    fit_probes,
    permutation_p,
    principal_angles,
    probe_agreement,
    probe_factors,
    random_cosine_p,
    summarise,
)
from cegen.core import random_stream


def planted(n=1200, d=30, share=0.2, noise=0.3, seed=0):
    "Correlated features, one hyperplane, and the rows on its far side."
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=d)
    features = rng.normal(size=(n, d)) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)) / d**0.5) + rng.normal(size=d)
    score = features @ normal
    score += noise * score.std() * rng.normal(size=n)
    return features, score > np.quantile(score, 1 - share), normal


# --- the probe itself


@pytest.mark.parametrize("n, d", [(400, 20), (60, 200)], ids=["more rows than units", "fewer"])
@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_solver_finds_the_minimum_that_sklearn_finds(n, d, strength):
    features, positive, _ = planted(n, d, share=0.5)
    features[:, 3] = 7  # a dead unit
    features[:, 4] = 5000 + 0.01 * features[:, 4]
    probes = fit_probes(features, {"far": positive}, strengths=(strength,))
    x = StandardScaler().fit(features)
    model = LogisticRegression(C=1 / (strength * n), tol=1e-9, max_iter=5000).fit(x.transform(features), positive)
    scale = np.where(x.var_ > 0, np.sqrt(x.var_), 1)
    standardised = probes.weight[0] * scale
    assert np.abs(standardised - model.coef_[0]).max() < 0.02 * np.abs(model.coef_).max()
    logits, expected = probes.logits(features)[:, 0], model.decision_function(x.transform(features))
    assert np.abs(logits - expected).max() < 0.02 * np.abs(expected).max()
    assert ((logits > 0) == (expected > 0)).mean() > 0.99
    assert probes.weight[0, 3] == 0


def test_many_probes_side_by_side_are_each_what_they_are_alone():
    features, positive, _ = planted()
    table = probe_factors(features, {"far": positive}, n_seeds=4, strengths=(0.05,))
    for k, row in table.iterrows():
        stream = random_stream(0, f"binary probe far {k}")
        split = binary_probe._split(positive, np.arange(1200), 0.3, 5, 0, k, stream)
        scaler = StandardScaler().fit(features[split.train])
        model = LogisticRegression(C=1 / (0.05 * len(split.train)), tol=1e-9, max_iter=5000)
        model.fit(scaler.transform(features[split.train]), positive[split.train])
        x, y = scaler.transform(features[split.test]), positive[split.test]
        said = model.predict(x)
        assert row.accuracy == pytest.approx((said == y).mean(), abs=2.1 / len(y))
        assert row.auc == pytest.approx(roc_auc_score(y, model.decision_function(x)), abs=0.003)
        for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            assert row[name] == pytest.approx(score(y, said), abs=0.02)


def test_steps_that_do_not_suffice_are_told(monkeypatch):
    features, positive, _ = planted()
    monkeypatch.setattr(binary_probe, "MAX_STEPS", 1)
    assert not probe_factors(features, {"far": positive}, n_seeds=2).converged.any()


def test_planted_hyperplane_is_found():
    features, positive, normal = planted(6000, 10, share=0.3, noise=0.1)
    table = probe_factors(features, {"far": positive}, n_seeds=3)
    assert table.accuracy.min() > 0.9 and table.auc.min() > 0.97 and table.converged.all()
    found = fit_probes(features, {"far": positive}).directions("features")[0]
    assert found @ normal / np.linalg.norm(normal) > 0.99


@pytest.mark.parametrize("form", ["float16", "float32", "tensor", "memory-mapped"])
def test_forms_of_features_agree(form, tmp_path):
    features, positive, _ = planted(400)
    expected = probe_factors(features, {"far": positive}, n_seeds=2, strengths=(0.1,))
    np.save(tmp_path / "x.npy", features.astype(np.float32))
    given = {
        "float16": features.astype(np.float16),
        "float32": features.astype(np.float32),
        "tensor": torch.from_numpy(features).requires_grad_(),
        "memory-mapped": np.load(tmp_path / "x.npy", mmap_mode="r"),
    }[form]
    table = probe_factors(given, pd.DataFrame({"far": positive}), n_seeds=2, strengths=(0.1,))
    assert table.accuracy.to_numpy() == pytest.approx(expected.accuracy.to_numpy(), abs=0.03)


def test_scale_and_offset_of_units_do_not_matter():
    features, positive, _ = planted(500)
    rng = np.random.default_rng(1)
    moved = features * 10 ** rng.uniform(-6, 6, 30) * rng.choice([-1, 1], 30) + rng.normal(size=30)
    a, b = (probe_factors(x, {"far": positive}, n_seeds=2, strengths=(0.1,)) for x in (features, moved))
    assert a.accuracy.to_numpy() == pytest.approx(b.accuracy.to_numpy(), abs=0.02)
    assert a.auc.to_numpy() == pytest.approx(b.auc.to_numpy(), abs=0.01)


def test_units_that_take_both_signs_are_alive_and_constant_ones_harmless():
    rng = np.random.default_rng(0)
    positive = rng.random(600) < 0.5
    signed = (np.where(positive, 1.0, -1.0) + 0.3 * rng.normal(size=600) - 0.6)[:, None]
    features = np.concatenate([signed, np.full((600, 1), 3.0), np.zeros((600, 1)), rng.normal(1, 1, (600, 1))], axis=1)
    assert signed.mean() < 0
    assert probe_factors(features, {"sign": positive}, n_seeds=2).accuracy.min() > 0.95
    assert probe_factors(features, {"sign": positive}, n_seeds=2, protocol="official").accuracy.max() < 0.7


# --- splits


def test_halves_are_balanced_and_groups_never_split():
    rng = np.random.default_rng(0)
    for trial in range(20):
        groups = rng.integers(0, 30, 400)
        positive = rng.random(400) < 0.3 * (groups % 3 > 0)
        stream = random_stream(trial, "test")
        split = binary_probe._split(positive, groups, 0.3, 1, 3, trial, stream)
        assert set(groups[split.train]) & set(groups[split.test]) == set()
        assert positive[split.train].mean() == positive[split.test].mean() == 0.5
        for fold in range(3):
            inside = split.fold == fold
            assert set(groups[split.train[inside]]) & set(groups[split.train[~inside]]) == set()


def test_a_probe_that_recognises_photographs_gets_nothing_for_it():
    rng = np.random.default_rng(0)
    photograph = np.repeat(np.arange(40), 10)
    features = rng.normal(size=(40, 100))[photograph] + 0.1 * rng.normal(size=(400, 100))
    positive = (rng.random(40) < 0.5)[photograph]  # a coin for each photograph
    honest = probe_factors(features, {"coin": positive}, groups=photograph)
    careless = probe_factors(features, {"coin": positive})
    assert careless.accuracy.mean() > 0.95
    assert honest.accuracy.mean() < 0.7 and summarise(honest).p_corrected[0] > 0.05


def test_splits_are_the_same_for_all_models_and_differ_between_seeds():
    features, positive, _ = planted(300)
    logits = []

    def remember(truth, z, groups):
        logits.append(groups)
        return original(truth, z, groups)

    original = binary_probe._scores
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binary_probe, "_scores", remember)
        for x, seed in ((features, 0), (np.random.default_rng(1).normal(size=(300, 5)), 0), (features, 1)):
            probe_factors(x, {"far": positive}, n_seeds=2, seed=seed, strengths=(0.1,))
    first, second, other = logits[:2], logits[2:4], logits[4:]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[0], other[0])


def test_same_seed_same_table():
    features, positive, _ = planted(300)
    a, b = (probe_factors(features, {"far": positive}, n_seeds=3, seed=5) for _ in range(2))
    pd.testing.assert_frame_equal(a, b)


# --- leaks


def probe_of_first_split(features, positive, strengths):
    stream = random_stream(0, "leak")
    split = binary_probe._split(positive, np.arange(len(positive)), 0.3, 5, 3, 0, stream)
    reader = binary_probe._Reader(features, 1e-6)
    return split, binary_probe._fit(reader, positive, [split], strengths)[0]


@pytest.mark.parametrize("d", [30, 600], ids=["more rows than units", "fewer"])
def test_neither_standardisation_nor_strength_looks_at_test_rows(d):
    features, positive, _ = planted(500, d, share=0.4)
    split, before = probe_of_first_split(features, positive, binary_probe.STRENGTHS)
    moved, rng = features.copy(), np.random.default_rng(3)
    moved[split.test] = 5 + 20 * rng.normal(size=(len(split.test), d))
    _, after = probe_of_first_split(moved, positive, binary_probe.STRENGTHS)
    assert after.strength == before.strength
    assert np.abs(after.weight - before.weight).max() < 0.01 * np.abs(before.weight).max()
    assert after.bias == pytest.approx(before.bias, rel=0.02, abs=0.01)
    # The probe with statistics of all rows is another one, so the test above can fail.
    scale = {name: x.std(axis=0) for name, x in (("training", features[split.train]), ("all", moved))}
    assert (scale["all"] > 1.5 * scale["training"]).all()


def test_answers_of_test_rows_do_not_choose_the_strength():
    features, positive, _ = planted(400, 60, share=0.5, noise=1.0)
    split, before = probe_of_first_split(features, positive, binary_probe.STRENGTHS)
    turned = positive.copy()
    turned[split.test] = ~turned[split.test]
    reader = binary_probe._Reader(features, 1e-6)
    after = binary_probe._fit(reader, turned, [split], binary_probe.STRENGTHS)[0]
    assert (after.strength, after.bias) == (before.strength, before.bias)
    assert np.array_equal(after.weight, before.weight)


def test_strength_follows_the_task():
    features, positive, _ = planted(1500, 30, share=0.5, noise=0.05)
    clear = probe_factors(features, {"f": positive}, n_seeds=3).strength.max()
    coin = np.random.default_rng(0).random(1500) < 0.5
    chance = probe_factors(features, {"f": coin}, n_seeds=3).strength.min()
    assert clear <= 0.01 < 1 <= chance


# --- the published procedure


def published(features, positive, seed):
    "The same from its description, with other tools: an independent account of one repetition."
    x = pd.DataFrame(features).loc[:, lambda f: f.mean() > 0]
    x = ((x - x.mean()) / x.std(ddof=0)).to_numpy()
    (parts,) = StratifiedShuffleSplit(1, test_size=0.3, random_state=42 + seed).split(x, positive)
    kept = []
    for part in parts:
        m = min(positive[part].sum(), (~positive[part]).sum())
        kept.append(np.concatenate([[i for i in part if positive[i] == answer][:m] for answer in (False, True)]))
    train, test = kept
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression().fit(x[train], positive[train])
    return (
        model.score(x[test], positive[test]),
        roc_auc_score(positive[test], model.decision_function(x[test])),
        len(test),
    )


def test_official_protocol_is_the_published_one():
    features, positive, _ = planted(500, 20, share=0.15, noise=1.0)
    features = np.maximum(features, 0)
    features[:, 2] *= -1  # a unit that the published filter deletes
    table = probe_factors(features, {"far": positive}, protocol="official", seed=99)
    assert list(table.seed) == list(range(10)) and (table.protocol == "official").all()
    for row in table.itertuples():
        accuracy, auc, n_test = published(features, positive, row.seed)
        assert row.n_positive_test == n_test // 2
        assert row.accuracy == pytest.approx(accuracy, abs=1.1 / n_test) and row.auc == pytest.approx(auc, abs=0.01)
        assert row.strength == 1 / (2 * row.n_positive_train)
    summary = summarise(table, test="published").iloc[0]
    expected = stats.ttest_1samp(table.accuracy, 0.5)
    assert summary.p_published == pytest.approx(expected.pvalue, rel=1e-9)
    low, high = expected.confidence_interval()
    assert (summary.ci_low, summary.ci_high) == pytest.approx((low, high))


# --- significance


def test_corrected_t_is_the_formula():
    scores = np.array([0.6, 0.55, 0.7, 0.52])
    p, both, low, high = corrected_t(scores, ratio=0.25)
    t = 0.0925 / np.sqrt(scores.var(ddof=1) * (1 / 4 + 0.25))
    assert p == pytest.approx(stats.t.sf(t, 3)) and both == pytest.approx(2 * p)
    assert (low + high) / 2 == pytest.approx(scores.mean())
    below = corrected_t(1 - scores, ratio=0.25)
    assert below[0] > 0.9 and below[1] == pytest.approx(both), "worse than chance earns no star"
    assert np.isnan(corrected_t(scores[:1], 0.25)).all()
    assert 1e-6 < corrected_t([1.0] * 10, 3 / 7, n_test=24)[0] < 1e-3, "equal scores are no proof"


def test_p_values_of_chance_are_calibrated():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(160, 10))
    coins = {f"coin {k}": rng.random(160) < 0.4 for k in range(150)}
    table = probe_factors(features, coins, strengths=(0.1,))
    summary = summarise(table)
    assert table.accuracy.mean() == pytest.approx(0.5, abs=0.01) and table.auc.mean() == pytest.approx(0.5, abs=0.01)
    # Of 150 draws at 5 %, 15 or fewer are expected with probability .99; the plain test of overlapping splits is far above.
    assert (summary.p_corrected < 0.05).sum() <= 15 and (summary.p_permutation < 0.05).sum() <= 15
    assert (summary.p_published < 0.05).sum() > 22
    assert (summary.stars_bonferroni != "").sum() <= 1
    single = table[table.seed == 0].p_permutation
    for level in (0.1, 0.3, 0.5):  # exact up to the steps of a discrete test
        assert level - 0.2 < (single <= level).mean() < level + 0.07


def test_permutation_p_is_what_shuffling_gives():
    rng = np.random.default_rng(0)
    positive, groups = rng.random(40) < 0.5, np.repeat(np.arange(10), 4)
    positive[:12] = np.repeat([True, False, True], 4)  # three groups with one answer
    logits = rng.normal(size=40) + 0.6 * np.where(positive, 1, -1)
    observed, hits, n = None, 0, 5000
    pure = {g: positive[groups == g].all() for g in range(10) if len(set(positive[groups == g])) == 1}
    mean = {g: logits[groups == g].mean() > 0 for g in pure}
    for k in range(n + 1):
        answers = np.array(list(pure.values()))
        answers = answers if k == 0 else rng.permutation(answers)
        total = (answers & np.array(list(mean.values()))).sum()
        for g in set(range(10)) - set(pure):
            inside = positive[groups == g]
            total += ((inside if k == 0 else rng.permutation(inside)) & (logits[groups == g] > 0)).sum()
        observed = total if k == 0 else observed
        hits += k > 0 and total >= observed
    assert permutation_p(positive, logits, groups) == pytest.approx(hits / n, abs=0.03)


def test_permutation_p_where_every_group_has_both_answers():
    positive, groups = np.tile([True, False], 60), np.repeat(np.arange(3), 40)
    assert permutation_p(positive, np.where(positive, 1.0, -1.0), groups) < 1e-10
    assert permutation_p(positive, np.where(positive, -1.0, 1.0), groups) == pytest.approx(1)


def test_adjusted_p_values():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    assert adjust(p, "bonferroni")[[0, 2, 3, 4]] == pytest.approx([0.04, 0.16, 0.12, 1])
    assert adjust(p, "holm")[[0, 2, 3, 4]] == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert np.isnan(adjust(p, "holm")[1])


def test_stars_count_all_models_and_factors():
    features, positive, _ = planted(400, noise=0.5)
    factors = {"far": positive, "rare": np.arange(400) < 3}
    noise = np.random.default_rng(1).normal(size=(400, 30))
    models = {"trained": features, "noise": noise}
    both = pd.concat([probe_factors(x, factors).assign(model=name) for name, x in models.items()])
    summary = summarise(both)
    assert list(summary.model) == ["trained", "trained", "noise", "noise"]
    assert list(summary.skipped != "") == [False, True, False, True]
    assert summary.p_bonferroni[0] == pytest.approx(min(1, 2 * summary.p_corrected[0])), "skipped factors are no tests"
    assert summary.stars_holm[0] == "***" and list(summary.stars_holm[1:]) == ["", "", ""]
    assert (summary.ci_low[0] < summary.accuracy_mean[0] < summary.ci_high[0]) and np.isnan(summary.p_holm[1])


# --- factors that cannot be probed


@pytest.mark.parametrize("protocol", ["sound", "official"])
def test_rare_factors_are_named_counted_and_skipped(protocol):
    features, positive, _ = planted(400)
    features = np.abs(features)
    factors = {"far": positive, "three": np.arange(400) < 3, "none": np.zeros(400, bool), "all": np.ones(400, bool)}
    table = probe_factors(features, factors, n_seeds=2, protocol=protocol, strengths=(0.1,))
    assert list(table.factor.unique()) == list(factors) and len(table) == 8
    skipped = table[table.skipped != ""].groupby("factor", sort=False)
    assert list(skipped.groups) == ["all", "none", "three"] or set(skipped.groups) == {"all", "none", "three"}
    assert skipped.n_positive.first().to_dict() == {"three": 3, "none": 0, "all": 400}
    assert skipped.accuracy.count().sum() == 0 and table.skipped.str.contains("fewer than 5").sum() == 6
    assert summarise(table).n_seeds.tolist() == [2, 0, 0, 0]


def test_positives_of_a_single_group_cannot_be_probed():
    features, positive, _ = planted(400)
    groups = np.where(positive, 0, np.arange(400))
    table = probe_factors(features, {"far": positive}, groups=groups, n_seeds=2)
    assert (table.skipped != "").all()
    assert "one class lies in a single group" in fit_probes(features, {"far": positive}, groups=groups).skipped["far"]


def test_table_of_skipped_factors_only_can_be_summarised():
    features, _, _ = planted(100)
    summary = summarise(probe_factors(features, {"none": np.zeros(100, bool)}))
    assert np.isnan(summary.accuracy_mean[0]) and summary.stars_holm[0] == "" and "fewer than 5" in summary.skipped[0]


# --- bad input

X, YES = planted(60)[:2]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"features": X.astype(int)}, "matrix of floats"),
        ({"features": X[:, 0]}, "matrix of floats"),
        ({"features": X[:, :0]}, "at least one row and one column"),
        ({"features": np.where(np.arange(60)[:, None] == 7, np.inf, X)}, "row 7"),
        ({"factors": {}}, "at least one factor"),
        ({"factors": [YES]}, "at least one factor"),
        ({"factors": {"far": YES.astype(int)}}, "Say which values count"),
        ({"factors": {"far": YES[:-1]}}, r"shape \(60,\)"),
        ({"groups": np.arange(59)}, "each of the 60 rows"),
        ({"groups": [None] * 60}, "60 missing"),
        ({"groups": np.arange(60), "protocol": "official"}, "splits rows"),
        ({"n_seeds": 0}, "n_seeds=0"),
        ({"test_fraction": 1}, "test_fraction=1"),
        ({"test_fraction": 0}, "test_fraction=0"),
        ({"strengths": ()}, "at least one number"),
        ({"strengths": (1.0, -1.0)}, "strengths=-1.0"),
        ({"strengths": 0.1}, r"\(0.1,\)"),
        ({"folds": 1}, "folds=1"),
        ({"min_rows": 0}, "min_rows=0"),
        ({"tolerance": -1}, "tolerance=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"protocol": "oficial"}, "'official'"),
        ({"features": -np.abs(X), "protocol": "official"}, "no unit with a positive mean"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_bad_input_is_named(unchecked, change, message):
    with pytest.raises(ValueError, match=message):
        probe_factors(**{"features": X, "factors": {"far": YES}, **change})


def test_bad_tables_are_named(unchecked):
    table = probe_factors(X, {"far": YES}, n_seeds=2, strengths=(0.1,), min_rows=1)
    for bad, message in ((table.drop(columns="auc"), "probe_factors"), (pd.concat([table, table]), "column 'model'")):
        with pytest.raises(ValueError, match=message):
            summarise(bad)
    with pytest.raises(ValueError, match="'permutation'"):
        summarise(table, test="permutatio")
    with pytest.raises(ValueError, match="level=95"):
        summarise(table, level=95)


# --- directions


@pytest.fixture(scope="module")
def fitted() -> Probes:
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(3000, 8))
    names = {"a": latent[:, 0] > 0, "b": latent[:, 1] > 0, "not a": latent[:, 0] < 0.2, "rare": np.arange(3000) < 2}
    return fit_probes(latent @ np.diag([1, 1, 1, 1, 5, 5, 5, 50.0]), names, strengths=(0.001,))


def test_cosines_of_planted_directions(fitted):
    assert fitted.names == ("a", "b", "not a") and "fewer than 5" in fitted.skipped["rare"]
    for metric in binary_probe.METRICS:
        assert np.linalg.norm(fitted.directions(metric), axis=1) == pytest.approx(1)
    cosines = cosine_matrix(fitted, "covariance")
    assert abs(cosines.loc["a", "b"]) < 0.1 and cosines.loc["a", "not a"] < -0.95
    pairs = cosine_pairs(fitted, "covariance").set_index(["first", "second"])
    assert pairs.loc[("a", "not a"), "p_holm"] < 0.01 < 0.1 < pairs.loc[("a", "b"), "p_random"]
    assert pairs.loc[("a", "not a"), "degrees"] > 160


def test_covariance_metric_is_the_correlation_of_logits_and_survives_linear_maps(fitted):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, 6))
    factors = {"a": x[:, 0] > 0, "b": x[:, 0] + x[:, 1] > 0}
    before = fit_probes(x, factors, strengths=(1e-5,))
    after = fit_probes(x @ (rng.normal(size=(6, 6)) + np.eye(6)), factors, strengths=(1e-5,))
    cosine = cosine_matrix(before, "covariance").loc["a", "b"]
    assert cosine == pytest.approx(np.corrcoef(before.logits(x).T)[0, 1], abs=1e-6)
    assert cosine_matrix(after, "covariance").loc["a", "b"] == pytest.approx(cosine, abs=0.03)


def test_pattern_is_the_direction_that_moves_the_features():
    rng = np.random.default_rng(2)
    positive, shared = rng.random(4000) < 0.5, rng.normal(size=4000)
    features = np.stack([np.where(positive, 1.0, -1.0) + 3 * shared, 3 * shared + 0.1 * rng.normal(size=4000)], axis=1)
    features[:, 0] += 0.1 * rng.normal(size=4000)
    probes = fit_probes(features, {"f": positive}, strengths=(1e-4,))
    (normal,), (pattern,) = probes.directions("features"), probes.directions("pattern")
    assert normal[1] < -0.6, "the normal subtracts what is shared"
    assert abs(pattern[1]) < 0.3 and pattern[0] > 0.95, "the factor itself moves the first unit only"


def test_random_cosines_have_their_law():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5000, 30))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert stats.kstest(random_cosine_p(cosine, 30), "uniform").pvalue > 0.01
    assert random_cosine_p(1.0, 30) == 0 and random_cosine_p(0.0, 30) == pytest.approx(1)


def test_principal_angles_of_known_planes_and_of_random_ones():
    e = np.eye(40)
    frame = principal_angles(e[:3], np.stack([e[0], e[1] + e[5], e[9]]), n_random=300)
    assert frame.degrees.to_numpy() == pytest.approx([0, 45, 90], abs=1e-5)
    fresh = np.random.default_rng(7).normal(size=(100, 2, 3, 40))
    means = np.mean([principal_angles(a, b, n_random=1).degrees for a, b in fresh], axis=0)
    assert frame.random_mean.to_numpy() == pytest.approx(means, abs=3)
    assert (frame.random_low < frame.random_mean).all()


def test_directions_that_span_nothing_are_named(unchecked):
    e = np.eye(40)
    for second, message in ((e[[0, 0]], "independent"), (e[:2, :5], "columns wide")):
        with pytest.raises(ValueError, match=message):
            principal_angles(e[:2], second)


def test_models_agree_where_they_see_the_same():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(3000, 10))
    factors = pd.DataFrame({"a": latent[:, 0] > 0, "b": latent[:, 1] > 1})
    models = [latent @ rng.normal(size=(10, 20)) for _ in range(2)] + [rng.normal(size=(3000, 20))]
    train, held_out = np.arange(2000), np.arange(2000, 3000)
    probes = [fit_probes(x, factors, rows=train) for x in models]
    later = factors.iloc[held_out]
    same = probe_agreement(probes[0], probes[1], models[0][held_out], models[1][held_out], later)
    other = probe_agreement(probes[0], probes[2], models[0][held_out], models[2][held_out], later)
    assert same.within.min() > 0.9 and same.correlation.min() > 0.9 and same.same_answer.min() > 0.9
    assert other.within.abs().max() < 0.15 and other.correlation.abs().max() < 0.15


def test_what_does_not_match_between_models_is_named(unchecked):
    x, factors = np.stack([X[:, 0], X[:, 1]], axis=1), {"a": YES, "b": ~YES}
    first, second = fit_probes(x, factors, strengths=(0.1,)), fit_probes(X, {"a": YES}, strengths=(0.1,))
    for arguments, message in (
        ((first, second, x, X[:5], factors), "rows long"),
        ((first, second, X, X, factors), "2 columns"),
        ((first, second, x, X, {"b": YES}), "factors that first"),
    ):
        with pytest.raises(ValueError, match=message):
            probe_agreement(*arguments)


def test_rows_are_numbers_and_not_a_mask(unchecked):
    with pytest.raises(ValueError, match="flatnonzero"):
        fit_probes(X, {"far": YES}, rows=YES)


def test_activations_of_half_precision_are_welcome():
    rng = np.random.default_rng(0)
    features = torch.as_tensor(rng.normal(size=(400, 3)), dtype=torch.bfloat16)
    factors = {"first": (features[:, 0] > 0).numpy()}
    half, single = (binary_probe.probe_factors(f, factors) for f in (features, features.float()))
    pd.testing.assert_frame_equal(half, single)
