"""What everything rests on: errors, streams of randomness, devices, and files that are whole or absent."""

import json
import math
import os

import numpy as np
import pytest
import torch

from cegen.core import (
    MissingExtra,
    as_generator,
    check_finite,
    check_integer,
    check_real,
    check_rows,
    check_writable,
    choose_device,
    installed_folder,
    random_stream,
    stream_seed,
    write_atomically,
    write_json,
)


@pytest.mark.parametrize("value", [True, 2.0, "3", None, math.nan, 1])
def test_what_is_no_integer_in_range_is_refused(value):
    with pytest.raises(ValueError, match="steps="):
        check_integer("steps", value, low=2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", None, True, -0.1, 0.0])
def test_what_is_no_positive_number_is_refused(value):
    with pytest.raises(ValueError, match="lr="):
        check_real("lr", value, low=0, open_low=True)


def test_first_bad_number_is_located():
    x = torch.zeros(3, 2, 2)
    x[1, 0, 1] = math.inf
    with pytest.raises(ValueError, match=r"1 of 12 entries.*\(1, 0, 1\)"):
        check_finite("x", x)


def test_streams_differ_by_name_and_by_seed():
    seeds = {stream_seed(s, name) for s in range(50) for name in ("data", "mixing", "encoder", "head")}
    assert len(seeds) == 200


def test_streams_are_uncorrelated():
    a, b = (torch.randn(10_000, generator=random_stream(0, name)) for name in ("data", "mixing"))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.04


def test_a_generator_is_used_as_it_is_and_a_seed_makes_one(unchecked):
    g = torch.Generator()
    assert as_generator(g) is g
    for wrong in (None, -1, True, 1.5):
        with pytest.raises(ValueError, match="generator="):
            as_generator(wrong)


def test_absent_device_is_named(unchecked):
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for absent in ("cuda:63", "gpu", "meta"):
        with pytest.raises(ValueError, match="device='"):
            choose_device(absent)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((4, 3)), r"torch\.as_tensor\(x"),
        ([[0.0, 0.0, 0.0]], r"torch\.as_tensor\(x"),
        (torch.zeros(3, 4), "Samples are rows"),
        (torch.tensor(1.0), "Samples are rows"),
        (torch.zeros(4, 3).double(), r"x\.to\(torch\.float32\)"),
    ],
)
def test_what_is_no_table_of_tensors_is_told_how_to_become_one(value, message):
    with pytest.raises(ValueError, match=message):
        check_rows("x", value, 3, torch.float32)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = write_json(tmp_path / "a.json", {"value": 1})

    def broken(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, broken)
    assert json.loads(path.read_text()) == {"value": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_json_refuses_what_json_cannot_say(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"value": math.nan})
    assert os.listdir(tmp_path) == []


def test_folder_in_the_way_of_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="a folder that can be written to"):
        check_writable(tmp_path / "file" / "sub")
    assert check_writable(tmp_path / "new" / "deep").is_dir()


def test_installed_package_is_found_without_running_it(tmp_path, monkeypatch):
    (tmp_path / "explosive").mkdir()
    (tmp_path / "explosive" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "lonely.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_folder("dev", "explosive") == tmp_path / "explosive"
    with pytest.raises(ValueError, match="'lonely'.*folder of its own"):
        installed_folder("dev", "lonely")
    with pytest.raises(MissingExtra, match=r"pip install 'cegen\[imagenetx\]'"):
        installed_folder("imagenetx", "no_such_package")
