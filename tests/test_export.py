"""Weights for other programs: what the file says of itself, and that it computes the same at other sizes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib

import onnxruntime
import pytest
import torch
from conftest import BUNDLE, ENVIRONMENT, ROOT
from scripts import __main__ as command
from scripts.errors import InputError
from scripts.evaluation import export as exporting
from scripts.evaluation.export import export
from scripts.training.settings import trained_network


@pytest.fixture
def liver(tmp_path):
    """Weights of two classes and two channels, with their settings."""
    settings = {"class_names": ["background", "liver"], "in_channels": 2, "spatial_size": 96, "seed": 3,
                "intensity": {"_target_": "NormalizeIntensityd", "keys": "image"}}  # fmt: skip
    file = tmp_path / "model_best.pt"
    network = trained_network(BUNDLE / "models" / "model.pt")
    state = dict(network.state_dict())
    torch.manual_seed(0)
    state["backbone.conv_0.conv_0.conv.weight"] = torch.randn_like(state["backbone.conv_0.conv_0.conv.weight"]).repeat(
        1, 2, 1, 1
    )
    state["backbone.final_conv.weight"] = torch.randn(2, *state["backbone.final_conv.weight"].shape[1:])
    state["backbone.final_conv.bias"] = torch.randn(2)
    torch.save(state, file)
    (tmp_path / "training.json").write_text(json.dumps(settings))
    return file


SIZES = [(1, 2, 64, 64), (5, 2, 96, 176), (2, 2, 224, 32)]


def test_it_tells_of_these_weights_and_computes_the_same(liver, tmp_path):
    network = trained_network(liver)
    script, onnx = export(str(tmp_path / "m.ts"), str(liver)), export(str(tmp_path / "m.onnx"), str(liver))
    extra = {"metadata.json": ""}
    loaded = torch.jit.load(str(script), _extra_files=extra).eval()
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    assert session.get_inputs()[0].shape == ["batch", 2, "x", "y"], "x to the right: no rows and columns"
    for told in (
        json.loads(extra["metadata.json"]),
        {k: json.loads(properties[k]) for k in ("network_data_format", "training")},
    ):
        pred = told["network_data_format"]["outputs"]["pred"]
        assert pred["channel_def"] == {"0": "background", "1": "liver"} and pred["num_channels"] == 2
        taken = told["network_data_format"]["inputs"]["image"]
        assert taken["num_channels"] == 2 and told["training"]["seed"] == 3
        assert "modality" not in taken and taken["value_range"] == [], "of that data nobody knows more"
    everything = (
        extra["metadata.json"].decode() if isinstance(extra["metadata.json"], bytes) else extra["metadata.json"]
    )
    for text in (everything, str(properties)):
        assert "ventricle" not in text and "eval_metrics" not in text, "nothing of the shipped weights"
    for size in SIZES:
        image = torch.rand(*size)
        with torch.no_grad():
            expected = network(image)
            assert torch.allclose(loaded(image), expected, atol=1e-4)
        (found,) = session.run(None, {"image": image.numpy()})
        assert torch.allclose(torch.as_tensor(found), expected, atol=1e-3), size


def test_weights_in_the_place_of_the_shipped_ones_tell_of_themselves(liver, tmp_path, monkeypatch):
    """``publish`` of a training puts them there."""
    monkeypatch.setattr(exporting, "ROOT", tmp_path)
    shutil.copytree(BUNDLE / "configs", tmp_path / "configs")
    published = tmp_path / "models" / "model.pt"
    shutil.copytree(BUNDLE / "models", tmp_path / "models")
    shipped = exporting.metadata_of(published, exporting.settings_of(published))
    assert "ventricle" in str(shipped) and "CC BY-NC-SA" in shipped["data_source"]
    settings = json.loads((tmp_path / "training.json").read_text()) | {"recipe": {"seed": 3}}
    (tmp_path / "models" / "training.json").write_text(json.dumps(settings))
    told = exporting.metadata_of(published, exporting.settings_of(published))
    assert "liver" in told["task"] and "ventricle" not in str(told) and "data_source" not in told


def test_what_cannot_be_exported(liver, tmp_path):
    (tmp_path / "there.ts").touch()
    for output, word in (("m.h5", r"\.ts, \.pt or \.onnx"), ("there.ts", "exists already")):
        with pytest.raises(InputError, match=word):
            export(str(tmp_path / output), str(liver))
    settings = json.loads((tmp_path / "training.json").read_text())
    for name in ("class_names", "in_channels", "spatial_size"):
        (tmp_path / "training.json").write_text(json.dumps({k: v for k, v in settings.items() if k != name}))
        with pytest.raises(InputError, match=rf"training\.json: expected the settings .* without {name}; put the tr"):
            export(str(tmp_path / "m.ts"), str(liver))
    alone = shutil.copy(liver, tmp_path / "a.pt")
    (tmp_path / "training.json").unlink()
    with pytest.raises(InputError, match="no settings beside the weights"):
        export(str(tmp_path / "m.ts"), str(alone))
    with pytest.raises(InputError, match="nothing: no such weights"):
        export(str(tmp_path / "m.ts"), str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="no such weights"):  # --ckpt_path "$RUN" where RUN is not set
        export(str(tmp_path / "m.ts"), "")


def test_the_command_of_an_installed_package(monkeypatch, tmp_path, liver, capsys):
    """In a folder that is not the bundle's; the package's configurations, unless one of that name lies here."""
    monkeypatch.chdir(tmp_path)
    words = command.run_options(["training", "--config_file", "['configs/train.yaml','mine.yaml']", "--epochs", "2"])
    assert words[2] == str([str(BUNDLE / "configs" / "train.yaml"), "mine.yaml"]) and words[-2:] == [
        "--bundle_root",
        str(BUNDLE),
    ]
    assert command.run_options(["--config_file=configs/inference.yaml", "--bundle_root", "x"])[-2:] == [
        "--bundle_root",
        "x",
    ]
    monkeypatch.setattr(sys, "argv", ["semsim", "export", "--ckpt_path", str(liver), "--output", "m.ts"])
    command.main()
    assert (tmp_path / "m.ts").is_file()
    monkeypatch.setattr(sys, "argv", ["semsim", "wibble"])
    with pytest.raises(SystemExit, match="expected one of run, datalist"):
        command.main()
    assert "semsim datalist create" in capsys.readouterr().out


@pytest.mark.parametrize("given, expected", [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_wait_without_spinning(given, expected):
    """Which OpenMP is told before torch is loaded, so by the command itself."""
    code = (
        "import os, sys, scripts.__main__ as command; sys.argv = ['semsim']; command.main(); "
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    environment = {name: text for name, text in os.environ.items() if name != "OMP_WAIT_POLICY"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=BUNDLE, env=environment | given, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == f"{expected} False"


def test_a_user_without_an_entry(monkeypatch, capsys, tmp_path):
    """In a container started with ``--user``; MONAI asks for a name when it is loaded. The label app's server, too."""

    def no_entry() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(command.getpass, "getuser", no_entry)
    monkeypatch.setattr(sys, "argv", ["semsim", "--help"])
    monkeypatch.setitem(os.environ, "USER", "")  # put back afterwards
    command.main()
    assert os.environ["USER"].startswith("user") and "semsim datalist create" in capsys.readouterr().out
    monkeypatch.delenv("USER")
    monkeypatch.syspath_prepend(str(ROOT / "label_app"))
    import demo

    started: list[dict[str, str]] = []
    monkeypatch.setattr(demo.subprocess, "Popen", lambda *_, env, **__: started.append(env))
    demo.server(tmp_path, tmp_path, 1)
    assert started[0]["USER"].startswith("user")


def test_results_of_an_installed_package_stay_out_of_it(monkeypatch, tmp_path):
    from scripts.dataio.files import results_folder

    package = tmp_path / "lib" / "site-packages" / "semsim_bundle"
    assert results_folder(package) == "output" and results_folder(package, "predictions") == "output/predictions"
    assert results_folder(BUNDLE, "predictions") == str(BUNDLE / "output" / "predictions")


def test_an_installed_package(tmp_path):
    """The files that pyproject.toml packs, in another place: the command works and writes into the working folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    place, work = tmp_path / "site-packages", tmp_path / "work"
    work.mkdir()
    setuptools = project["tool"]["setuptools"]
    folders = [name.replace(".", "/") for name in setuptools["packages"]]
    packed = [f"{folder}/*.py".removeprefix("semsim_bundle/") for folder in folders]
    packed += setuptools["package-data"]["semsim_bundle"]
    rooms = {p.parent.relative_to(BUNDLE.parent).as_posix() for p in BUNDLE.rglob("scripts/**/__init__.py")}
    assert rooms | {"bundle"} == {folder.replace("semsim_bundle", "bundle") for folder in folders}
    for file in [file for pattern in packed for file in BUNDLE.glob(pattern)]:
        target = place / "semsim_bundle" / file.relative_to(BUNDLE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    before = {p for p in place.rglob("*") if p.suffix != ".pyc"}
    module, function = project["project"]["scripts"]["semsim"].split(":")
    command = [sys.executable, "-c", f"from {module} import {function}; {function}()"]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(place)}
    files = "['configs/train.yaml','configs/labeled_only.yaml']"
    small = ["--epochs", "1", "--steps_per_epoch", "1", "--spatial_size", "32", "--batch_size", "2"]
    for words in (["export", "--output", "m.ts"], ["run", "training", "--config_file", files, *small]):
        done = subprocess.run(
            [*command, *words], cwd=work, env=environment, capture_output=True, encoding="utf-8", timeout=200
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert (work / "m.ts").is_file() and (work / "output" / "model_last.pt").is_file()
    assert {p for p in place.rglob("*") if p.suffix != ".pyc" and p.name != "__pycache__"} <= before, "nothing in it"
