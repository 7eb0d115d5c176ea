"""Prediction costs what the plain U-Net costs."""

from __future__ import annotations

import json
import sys

import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import infer


def test_prediction_has_the_arithmetic_of_the_bare_network(tmp_path, capsys):
    """The benchmark of inference, on small slices: the same FLOPs, and no more time than noise would explain."""
    out = tmp_path / "infer.json"
    infer.measure(str(out), sizes=32, repeats=3, threads=1, with_exports=False)
    rows = json.loads(out.read_text())["sizes"]["32"]
    assert rows["network bundle"]["gflop_per_slice"] == rows["network bare"]["gflop_per_slice"] > 0
    for kind in ("pipeline", "network"):
        assert rows[f"{kind} bundle"]["seconds"]["min"] < 2 * rows[f"{kind} bare"]["seconds"]["min"]
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
