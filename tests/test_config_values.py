"""Values and keys that a run would take without a word, and that would do nothing or something else."""

from __future__ import annotations

import re

import pytest
from conftest import BUNDLE
from monai.bundle import ConfigParser, ConfigWorkflow
from scripts.errors import explain
from scripts.hosts.config_keys import problems_of
from scripts.hosts.config_values import wrong_values

LOSS = "scripts.method.losses.SemSimLoss"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"steps_per_epoch": 0}, "steps_per_epoch: expected a whole number of 1 or more, received 0."),
        ({"epochs": 1.5}, "epochs: expected a whole number of 1 or more, received 1.5."),
        ({"batch_size": True}, "batch_size: expected a whole number of 1 or more, received True."),
        ({"loss": {"threshold": 80}}, "loss#threshold: expected a number from 0 to 1, received 80."),
        ({"loss": {"lambda_u": -1}}, "loss#lambda_u: expected a number of 0 or more, received -1."),
        ({"loss": {"prototype_temperature": -0.1}}, "loss#prototype_temperature: .* of 0 or more, received -0.1."),
        ({"fold": "zero"}, "fold: expected a whole number of 0 or more, received 'zero'.$"),
        ({"copy_paste": float("nan")}, "copy_paste: expected a number from 0 to 1, received nan."),
        ({"learning_rate": "1e-3"}, "learning_rate: .*, received '1e-3'; write 1.0e-3 in place of 1e-3 in YAML"),
        ({"optimizer": {"lr": "1e-2"}}, "^optimizer#lr: expected a number, .* text '1e-2'; write 1.0e-2 in YAML.$"),
        ({"weak_transforms": [{"std": ["1E2"]}]}, "^weak_transforms#0#std#0: .* write 1.0E2 in YAML."),
        ({"use_unlabeled": "no"}, "use_unlabeled: expected True or False, received the text 'no'; "),
        ({"keep_largest": "FALSE"}, "keep_largest: expected True or False, received the text 'FALSE'; "),
        ({"loss": {"gather_prototypes": "off"}}, "loss#gather_prototypes: expected True or False"),
        ({"class_names": ["organ"]}, "class_names: expected at least two"),
        ({"batch_size": 1, "loss": {"lambda_labeled": 0.25}}, "batch_size: expected 2 or more with loss#lam"),
        ({"spatial_size": 0, "spatial_dims": 2}, "spatial_size: expected 16 pixels or more, .*, received 0."),
        ({"spatial_size": "96x96"}, "spatial_size: expected 16 pixels or more, .*, received '96x96'."),
        ({"spatial_size": [64], "spatial_dims": 2}, r"spatial_size: .* \[width, height\] of as many, received \[64\]."),
        ({"features": [16, 32]}, r"features: expected 6 numbers of channels, .*, received \[16, 32\]."),
        ({"flip_tta": 0, "spatial_dims": 3}, "flip_tta: expected True, False or a list of axes .* received 0."),
        ({"flip_tta": [2], "spatial_dims": 2}, r"flip_tta: expected .* from 0 to 1, received \[2\]."),
        ({"output_dir": True}, "output_dir: expected a path behind it, received none; give one"),
        ({"plan_file": True}, "plan_file: expected a path behind it, received none; give one"),
        ({"output_postfix": 12}, "^output_postfix: expected a text, received 12 .as MONAI reads it.; write \"'TEXT'\""),
        ({"output_postfix": True}, "output_postfix: expected a text, received True"),
        ({"mlflow_experiment_name": 2024.1}, "mlflow_experiment_name: expected a text, received 2024.1 "),
        ({"class_names": ["background", 12]}, "class_names: expected a text for each class, received 12 .*in quotes"),
        ({"class_names": ["background", None]}, "class_names: expected a text for each class, received None "),
        ({"device": "gpu"}, "device: expected cpu, .*, received 'gpu' "),
        ({"device": "cuda:99"}, "device: expected cpu, .*, received 'cuda:99' "),
        ({"features": 16}, "features: expected 6 numbers of channels, .*, received 16."),
        ({"class_names": ["background", "a", "a"]}, "class_names: .* received a more than once"),
    ],
)
def test_values_that_mean_nothing(config, said):
    (line,) = wrong_values(ConfigParser(config))
    assert re.search(said, line) and "\n" not in line


def test_values_that_mean_something():
    config = {"spatial_size": [100, 16], "spatial_dims": 2, "epochs": None, "steps_per_epoch": 1,
              "loss": {"threshold": 1, "lambda_u": 0}, "num_workers": 0, "resume": True,
              "class_names": ["background", "a"], "learning_rate": "$1e-3", "publish": 0,
              "use_unlabeled": False, "show_progress": "true", "keep_largest": "$1 > 0",
              "experiment": "1e5", "optimizer": {"lr": 1.0e-2, "betas": "$(1e-1, 1e-2)"}}  # fmt: skip
    assert list(wrong_values(ConfigParser(config))) == []
    gathered = {"lambda_labeled": 0.25, "gather_prototypes": True}  # from other processes
    assert list(wrong_values(ConfigParser({"batch_size": 1, "loss": gathered}))) == []


def test_keys_within_sections_that_nothing_reads():
    files = [str(BUNDLE / "configs" / "train.yaml")]

    def problems(**override):
        flow = ConfigWorkflow(files, meta_file=None, logging_file=False, workflow_type="train", **override)
        return problems_of(flow)

    assert problems(loss={"lambda_u": 0.3, "threshold": 0.9}) == [
        "loss: expected a component with its _target_, received lambda_u, threshold alone; to change some of its "
        "arguments write each as loss#lambda_u: 0.3, loss#threshold: 0.9."
    ]
    assert problems(**{"loss#lambda_u": 0.3, "optimizer": {"_target_": "torch.optim.SGD"}}) == []
    assert problems(**{"train#batch_size": 4, "validate#interval": 1}) == [
        "train#batch_size: expected a key that an entry reads, received 'batch_size', which none does; did you mean "
        "batch_size?",
        "validate#interval: expected a key that an entry reads, received 'interval', which none does; did you mean "
        "val_interval?",
    ]
    assert problems(**{"train#mine": 4, "batch_size": "@train#mine"}) == []


@pytest.mark.parametrize(
    ("component", "said"),
    [
        (
            {"_target_": "RandFlipd", "keys": "image", "probability": 1},
            "RandFlipd: .*, received 'probability'; correct",
        ),
        ({"_target_": LOSS, "num_classes": 4, "treshold": 1}, "SemSimLoss: .*'treshold'"),
        ({"_target_": "scripts.method.network.SemSimNet", "fusion": "cnv"}, "fusion: expected .*, received 'cnv'"),
        (
            {"_target_": LOSS, "num_classes": 4, "views": {"strong1": 1}},
            "views .*strong1",
        ),
        ({"_target_": LOSS, "num_classes": 4, "views": {"strong_1": 0}}, "loss#views: expected a weight above 0"),
        ({"_target_": LOSS, "num_classes": 4, "views": {"strong_1": 1, "strong_2": -1}}, "loss#views: .*_2': -1"),
        (
            {"_target_": LOSS, "num_classes": 4, "views": ["strong_1"]},
            "loss#views: expected a weight for each view, .*",
        ),
        ({"_target_": LOSS, "num_classes": 4, "views": {"strong_1": "1"}}, "loss#views: expected a weight for each"),
        ({"_target_": LOSS, "num_classes": 4, "perturb": ["strong_2"]}, "loss#perturb: .* strong_1, received strong_2"),
        ({"_target_": LOSS, "num_classes": 4, "mask_source": "x"}, "loss#mask_source: expected decoder or own, rec"),
        ({"_target_": LOSS, "num_classes": 4, "affinity_axis": "rows"}, "loss#affinity_axis: .* received 'rows'"),
        ({"_target_": LOSS, "num_classes": 4, "refinement": "x"}, "loss#refinement: expected mean or sum"),
        ({"_target_": LOSS, "num_classes": 4, "uncertainty_divergence": "x"}, "uncertainty_divergence: expected soft"),
        ({"_target_": LOSS, "num_classes": 4, "affinity_temperature": 0.0}, "loss#affinity_temperature: .*0.012 or"),
    ],
)
def test_components_that_cannot_be_made_are_one_line(component, said):
    with pytest.raises(RuntimeError) as caught:
        ConfigParser({"a": component}).get_parsed_content("a")
    line = explain(caught.value)
    assert line is not None and re.search(said, line) and "\n" not in line
