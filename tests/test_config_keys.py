"""Misspelt keys, paths that MONAI would change and other bundles' code, by every door to a run."""

from __future__ import annotations

import shutil

import pytest
from conftest import BUNDLE
from monai.bundle import ConfigWorkflow, run
from scripts.errors import InputError, find_input_error

INFERENCE = str(BUNDLE / "configs" / "inference.yaml")


def said(call) -> str:
    with pytest.raises(Exception) as caught:
        call()
    found = find_input_error(caught.value)
    assert isinstance(found, InputError), caught.value
    return str(found)


@pytest.fixture
def given(phantom_dir, tmp_path):
    return {"bundle_root": str(BUNDLE), "dataset_dir": str(phantom_dir / "images"), "output_dir": str(tmp_path / "out"),
            "show_progress": False, "meta_file": None, "logging_file": False}  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"ckpt_pth": "x.pt"}, "did you mean ckpt_path"),
        ({"intensities": {"_target_": "ScaleIntensityd", "keys": "image"}}, "did you mean intensity"),
        ({"output_dir": "/d/study #2"}, "without '#'"),
        ({"output_dir": "~/run"}, "output_dir: expected a path, received '~/run' with its ~"),
        ({"intensity": "NormalizeIntensityd"}, "intensity: expected a component with its _target_, received 'Norm"),
        ({"intensity": [{"_target_": "ScaleIntensityd", "keys": "image"}]}, "received a list; put it into a Compose"),
        ({"dataset_dir": 2024}, "received 2024 (as MONAI reads it); write ./ before a name"),
    ],
)
def test_from_python(given, tmp_path, monkeypatch, keys, words):
    monkeypatch.chdir(tmp_path)
    message = said(lambda: run(config_file=INFERENCE, **{**given, **keys}))
    assert words in message and "\n" not in message
    assert list(tmp_path.iterdir()) == [], "nothing is written before"


@pytest.mark.parametrize("task", ["training", "planning"])
def test_no_training_with_what_is_for_evaluation(given, task):
    """It would begin with the weights to be scored, and choose the best by the test cases."""
    files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", "fixmatch", "evaluate")]
    message = said(lambda: run(task, config_file=files, **{**given, "show_progress": True}))
    assert f"expected no evaluate.yaml for `run {task}`" in message


def test_by_an_args_file_and_an_overlay(given, tmp_path):
    import yaml

    (tmp_path / "args.yaml").write_text(yaml.safe_dump({"config_file": INFERENCE, "ckpt_pth": "x", **given}))
    assert "did you mean ckpt_path" in said(lambda: run(args_file=str(tmp_path / "args.yaml")))
    (tmp_path / "window.yaml").write_text("intensities: {_target_: ScaleIntensityd, keys: image}\n")
    files = [INFERENCE, str(tmp_path / "window.yaml")]
    assert "did you mean intensity" in said(lambda: run(config_file=files, **given))
    (tmp_path / "window.yaml").write_text("mine: {_target_: ScaleIntensityd, keys: image}\nintensity: '@mine'\n")
    run(config_file=files, **given)
    assert len(list((tmp_path / "out").iterdir())) == 7, "a key that another entry names is one"
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "window.yaml").write_text("mine: {_target_: ScaleIntensityd, keys: image}\nintensity: '%mine'\n")
    run(config_file=files, **given)


def test_two_bundles_in_one_process(given, tmp_path):
    other = shutil.copytree(BUNDLE, tmp_path / "other", ignore=shutil.ignore_patterns("data", "output", "models"))
    message = said(lambda: run(config_file=str(other / "configs" / "inference.yaml"), **given))
    assert str(other / "scripts") in message and str(BUNDLE / "scripts") in message and "\n" not in message


def test_the_shipped_configurations_hold_nothing_unread():
    from scripts.hosts.config_keys import problems_of

    for names in (("inference",), ("train",), ("train", "evaluate"), ("train", "multi_gpu_train"), ("train", "demo"),
                  ("train", "acdc"), ("train", "isic"), ("train", "promise12"), ("train", "semsim_minus"),
                  ("train", "unimatch"), ("train", "fixmatch"), ("train", "literal")):  # fmt: skip
        files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in names]
        workflow = ConfigWorkflow(files, meta_file=None, logging_file=False, workflow_type="train")
        assert problems_of(workflow) == [], names
