"""Prediction costs what the plain U-Net costs."""

from __future__ import annotations

import json

import infer
import torch


def test_prediction_has_the_arithmetic_of_the_bare_network(tmp_path, capsys):
    """The benchmark of inference, on small slices: the same FLOPs."""
    out = tmp_path / "infer.json"
    infer.measure(str(out), sizes=32, repeats=3, threads=1, with_exports=False)
    rows = json.loads(out.read_text())["sizes"]["32"]
    flop = [rows[f"network {which}"]["gflop_per_slice"] for which in ("bundle", "bare", "amp")]
    assert flop[0] == flop[1] == flop[2] > 0
    assert rows["pipeline bundle"]["slices"] > 20 and rows["pipeline bundle"]["peak_bytes"] > 0
    assert "| pipeline bundle | " in capsys.readouterr().out


def test_both_networks_predict_alike(tmp_path):

    step_data = infer.make_data(tmp_path)
    networks = [
        infer.build(which, 32, step_data, tmp_path, "cpu").get_parsed_content("network").eval()
        for which in ("bundle", "bare")
    ]
    image = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        a, b = (network(image) for network in networks)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert a.abs().max() > 0.1


def test_labels_of_both_precisions_are_compared(phantom_dir, tmp_path, capsys):
    """On the folder that accuracy.py trains on, which holds images and labels and nothing else."""
    case = min((phantom_dir / "labels").iterdir()).name.removesuffix(".nii.gz")
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"training": [], "validation": [case]}))
    infer.agreement(str(phantom_dir), str(tmp_path / "agreement.json"), sizes=192, threads=2, splits=str(splits))
    record = json.loads((tmp_path / "agreement.json").read_text())
    row = record["agreement"]["192"]
    assert record["cases"] == [case] and "bfloat16" in record["amp"]
    assert row["foreground"] > 100 and 0.9 < row["same"] / row["foreground"] <= 1
    assert "| 192 | " in capsys.readouterr().out


def test_memory_is_that_of_the_users_command(tmp_path, capsys):
    infer.memory(str(tmp_path / "memory.json"), side=32, volumes=((4, 3),), spatial_size=32)
    (row,) = json.loads((tmp_path / "memory.json").read_text())["volumes"]
    assert row["shape"] == [32, 32, 4] and row["classes"] == 3 and row["cpu_seconds"] > 0
    assert 1e8 < row["peak_bytes"] < 2e9
    assert "| 32 x 32 x 4 | 3 | " in capsys.readouterr().out
