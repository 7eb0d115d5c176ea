"""What the template chooses from the data and the input: slices or volumes, sizes, classes, options."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import stat
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from conftest import ROOT
from monai.apps.auto3dseg import NNIGen, OptunaGen
from monai.auto3dseg import algo_to_json
from monai.bundle import ConfigParser
from scripts.dataio import slice_axis

from .folds import TEMPLATES, algo_class, filled, stats, train


@pytest.mark.parametrize(
    "spacing, shape, given, expected",
    [
        ((1.5, 1.5, 10), (120, 120, 9), {}, ""),
        ((0.9, 0.9, 1.0), (180, 200, 190), {}, ""),
        ((1.5, 1.5, 10), (120, 120, 9), {"sigmoid": True}, "overlap"),
        ((1.5, 1.5, 10), (120, 120, 9), {"class_names": [{"name": "organ", "index": [1, 2]},
                                                        {"name": "tumour", "index": [2]}]}, "overlap"),
        ((1.5, 1.5, 10), (120, 120, 9), {"class_names": ["a", "a"]}, "name of its own"),
        ((1.5, 1.5, 10), (120, 120, 9), {"class_names": ["background"]}, "values 1 to"),
        ((1.5, 1.5, 10), (120, 120, 9), {"class_names": {1: "a", 2: "b"}}, "expected a list of names"),
        ((1.5, 1.5, 10), (120, 120, 9), {"class_names": [{"name": "a"}]}, "expected name and index in each entry"),
        ((1.5, 1.5, 10), (120, 120, 9), {"dataroot": "/d/set #2"}, "'#'"),
        ((1.5, 1.5, 10), (120, 120, 9), {"extra_modalities": {"image2": "ct"}}, "one image as its channels"),
    ],
)  # fmt: skip
def test_what_is_skipped_and_why(tmp_path, spacing, shape, given, expected):
    algo = algo_class()(str(TEMPLATES))
    (tmp_path / "input.yaml").write_text(yaml.safe_dump(given))
    (tmp_path / "stats.yaml").write_text(yaml.safe_dump(stats(spacing, shape)))
    algo.set_data_source(str(tmp_path / "input.yaml"))
    algo.set_data_stats(str(tmp_path / "stats.yaml"))
    skip, reason = algo.pre_check_skip_algo()
    assert skip == bool(expected)
    assert not expected or re.search(expected, reason), reason
    (tmp_path / "stats.yaml").write_text(yaml.safe_dump(stats((1, 1, 8), (99, 99, 9), labels=(0, 2))))
    if not given:
        assert "renumber" in algo.pre_check_skip_algo()[1]


@pytest.mark.parametrize(
    "spacing, shape, given, dims, why",
    [
        ((1.5, 1.5, 10), (120, 120, 9), {}, 2, "ratio 6.67, 3 or more"),
        ((1, 1, 3), (256, 256, 90), {}, 2, "ratio 3, 3 or more"),
        ((3, 0.9, 0.9), (60, 256, 256), {}, 2, "3 or more"),
        ((0.7, 0.7, 1.5), (512, 512, 300), {}, 3, "below 3"),
        ((0.9, 0.9, 1.0), (180, 200, 190), {}, 3, "median shape 180 x 200 x 190, at least 32"),
        ((1, 1, 1), (256, 256, 10), {}, 2, "fewer slices"),  # an identity affine: the shape tells
        ((1, 1, 1), (180, 200, 190), {}, 3, "perhaps none stated"),
        ((0.9, 0.9, 1.0), (512, 512, 31), {}, 2, "fewer slices than the 32 of a patch"),
        ((0.9, 0.9, 1.0), (512, 512, 32), {}, 3, "at least 32"),
        ((1, 1, 1), (256, 256, 1), {}, 2, "no volume"),
        ((1, 1), (256, 256), {}, 2, "no volume"),
        ((0.9, 0.9, 1.0), (180, 200, 190), {"force_2d": True}, 2, "force_2d in the input"),
        ((1.5, 1.5, 10), (120, 120, 9), {"force_3d": True}, 3, "force_3d in the input"),
        ((1.5, 1.5, 10), (120, 120, 9), {"force_3d": False}, 2, "3 or more"),
    ],
)
def test_slices_or_volumes(spacing, shape, given, dims, why):
    algo_class()
    module = importlib.import_module("semsim.scripts.dimensions")
    found, reason = module.dimensions(given, np.array(spacing, float), np.array(shape, float), [64, 64, 32])
    assert found == dims and why in reason, reason
    assert given or slice_axis.worth_3d(spacing, shape) == (dims == 3), "`datalist create` says the same"


def test_dimensions_that_cannot_be_meant_are_refused(tmp_path):
    for given, shape, expected in (
        ({"force_2d": True, "force_3d": True}, (99, 99, 99), "one of them at most, received both"),
        ({"force_3d": True}, (99, 99, 1), "expected volumes, received images of 99 x 99 x 1"),
    ):
        algo = filled(tmp_path, stats((1, 1, 1), shape), given)
        with pytest.raises(ValueError, match=expected) as error:
            algo.pre_check_skip_algo()
        assert error.type.__name__ == "InputError"
        with pytest.raises(ValueError, match=expected):
            algo.export_to_disk(str(tmp_path), "semsim_0", fold=0)


@pytest.mark.parametrize(
    "shape, gigabytes, gpu, expected",
    [
        ((180, 200, 190), 64, False, [64, 64, 32]),  # without a GPU, time is short before memory is
        ((180, 200, 190), 0.5, True, [64, 64, 32]),
        ((180, 200, 190), 12, True, [96, 96, 64]),
        ((180, 200, 190), 80, True, [128, 128, 96]),
        ((100, 200, 40), 80, True, [96, 128, 32]),
        ((40, 50, 12), 80, False, [32, 48, 16]),
    ],
)
def test_patches_follow_memory_and_median_shape(shape, gigabytes, gpu, expected):
    algo_class()
    module = importlib.import_module("semsim.scripts.dimensions")
    overlay = yaml.safe_load((ROOT / "bundle" / "configs" / "volumes.yaml").read_text())
    sizes = module.of_patches(np.array(shape, float), overlay, 1e9 * gigabytes, gpu=gpu)
    assert sizes.values == {"spatial_size": expected}


@pytest.mark.parametrize("gpu, fusion, pixels", [(True, "sfm", 256), (False, "conv", 128)])
def test_slices_and_fusion_follow_the_device(gpu, fusion, pixels):
    algo_class()
    module = importlib.import_module("semsim.scripts.dimensions")
    sizes = module.of_slices(np.array([1.5, 1.5, 10]), np.array([300, 280, 9.0]), gpu=gpu)
    assert sizes.values["fusion"] == fusion and sizes.values["spatial_size"] == [pixels] * 2
    assert sizes.bytes == pytest.approx(module.BYTES[fusion] * pixels**2)


def test_a_fold_in_3d_takes_its_settings_from_the_overlay(tmp_path, caplog):
    """What the template does not choose, and what the user does."""
    given = {"roi_size": "48,48,32", "foreground": 0.7, "spatial_dims": 2, "loss#lambda_u": 0.4}
    for number, more in enumerate(({}, given)):
        algo = filled(tmp_path, stats((0.8, 0.8, 1.0), (180, 200, 190)), more)
        algo.export_to_disk(str(tmp_path), f"semsim_{number}", fold=number)
        configs = tmp_path / f"semsim_{number}" / "configs"
        content = yaml.safe_load((configs / "hyper_parameters.yaml").read_text())
        assert content["spatial_dims"] == 3 and "ratio 1.25, below 3" in content["spatial_dims_because"]
        parser = ConfigParser()
        parser.read_config([str(configs / f"{n}.yaml") for n in ("train", "volumes", "hyper_parameters")])
        assert parser["fusion"] == "conv" and parser["spacing"] == "auto" and parser["early_sizes"] == []
        assert parser["loss"]["regions"] == 1 and parser["epochs"] == 750, "3000 steps of 4 patches of 4 volumes"
        assert parser["spatial_size"] == ([48, 48, 32] if more else [64, 64, 32])
        assert parser["foreground"] == (0.7 if more else 0.5) and parser["loss"]["lambda_u"] == (0.4 if more else 0.5)
        metadata = json.loads((configs / "metadata.json").read_text())
        assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == ["16*n"] * 3
    assert "spatial_dims stays as generated" in caplog.text
    assert [r.message for r in caplog.records if "trains in 3D: median spacing" in r.message][1].startswith(
        str(tmp_path)
    )
    algo.export_to_disk(str(tmp_path), "semsim_1_lr", fill_with_datastats=False, learning_rate=0.1)
    again = yaml.safe_load((tmp_path / "semsim_1_lr" / "configs" / "hyper_parameters.yaml").read_text())
    changed = {k for k in again.keys() | content.keys() if again.get(k) != content.get(k)}
    assert changed == {"bundle_root", "generated_in", "learning_rate"}


def test_what_the_template_leaves_open_is_as_in_the_bundle(tmp_path):
    """A null of its own would stand in the place of the bundle's value."""
    algo = filled(tmp_path, stats((1.5, 1.5, 10), (120, 120, 9)), {})
    algo.export_to_disk(str(tmp_path), "semsim_0", fold=0)
    configs = tmp_path / "semsim_0" / "configs"
    tuned, below = (yaml.safe_load((configs / f"{name}.yaml").read_text()) for name in ("hyper_parameters", "train"))
    assert [key for key, value in tuned.items() if value is None and below.get(key) is not None] == []


def test_what_is_skipped_is_refused_where_nothing_may_be(tmp_path):
    """With allow_skip=False AutoRunner generates without asking."""
    algo = filled(tmp_path, stats((1.5, 1.5, 10), (120, 120, 9)), {"sigmoid": True})
    with pytest.raises(ValueError, match="cannot take this input: its classes exclude each other") as error:
        algo.export_to_disk(str(tmp_path), "semsim_0", fold=0)
    assert error.type.__name__ == "InputError"


def test_a_template_that_nobody_may_write(tmp_path):
    """The folder of a fold is written into, and replaced, whatever the modes of what it is copied from."""
    shutil.copytree(TEMPLATES / "semsim", tmp_path / "shared" / "semsim")
    for path in (tmp_path / "shared").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    algo = filled(tmp_path, stats((1.5, 1.5, 10), (120, 120, 9)), {})
    algo.template_path = str(tmp_path / "shared")
    for _ in range(2):
        algo.export_to_disk(str(tmp_path), "semsim_0", fold=0)
    fold = tmp_path / "semsim_0"
    assert all(path.stat().st_mode & stat.S_IWUSR for path in (fold, *fold.rglob("*")))


@pytest.mark.parametrize("source", ["input", "parameters"])
def test_a_window_takes_the_place_of_the_range_in_the_data(tmp_path, source):
    given = {"window": [-150, 250]}
    algo = filled(tmp_path, stats((1.5, 1.5, 10), (120, 120, 9)), given if source == "input" else {})
    algo.export_to_disk(str(tmp_path), "semsim_0", fold=0, **(given if source == "parameters" else {}))
    content = yaml.safe_load((tmp_path / "semsim_0" / "configs" / "hyper_parameters.yaml").read_text())
    assert content["intensity"]["window"] == [-150, 250] and content["intensity"]["_target_"].endswith("Intensityd")


def test_channels_of_ct_have_intensities_of_their_own(tmp_path):
    """The statistics of the data have those of the first channel alone, to which all of a PET may be black."""
    found = stats((1.5, 1.5, 10), (120, 120, 9))
    found["stats_summary"]["image_stats"]["channels"]["max"] = 2
    algo = filled(tmp_path, found, {"modality": "ct"})
    algo.export_to_disk(str(tmp_path), "semsim_0", fold=0)
    content = yaml.safe_load((tmp_path / "semsim_0" / "configs" / "hyper_parameters.yaml").read_text())
    assert content["in_channels"] == 2
    assert content["intensity"]["transforms"][0] == {
        "_target_": "NormalizeIntensityd", "channel_wise": True, "keys": "image",
    }  # fmt: skip


def test_the_log_of_a_training_says_why_it_ended(tmp_path):
    """The file is all that AutoRunner leaves of what a training prints."""
    algo = filled(tmp_path, stats((1.5, 1.5, 10), (32, 32, 4)), {"modality": "mri"})
    for number in range(4):
        for name, shape in ((f"{number}.nii.gz", (32, 32, 4)), (f"l{number}.nii.gz", (32, 32, 4, 2))):
            nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), np.diag([1.5, 1.5, 10, 1])), tmp_path / name)
    items = [{"image": f"{k}.nii.gz", "label": f"l{k}.nii.gz", "fold": k % 2} for k in range(4)]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    algo.export_to_disk(str(tmp_path), "semsim_0", fold=0, spatial_size=[32, 32], epochs=1)
    assert train(tmp_path / "semsim_0", check=False).returncode == 1
    log = (tmp_path / "semsim_0" / "model_fold0" / "training.log").read_text()
    assert "ended early" in log and "expected one channel of label values, received 2" in log, log


@pytest.mark.parametrize(
    ("given", "labels", "names"),
    [
        (["RV", "Myo", "LV"], [0, 1, 2, 3], ["background", "RV", "Myo", "LV"]),
        (["RV", "Myo", "LV"], [0, 1, 2], ["background", "RV", "Myo", "LV"]),  # no labelled scan shows the third
        (["RV", "Myo", "LV"], [0, 2, 3], ["background", "RV", "Myo", "LV"]),
        (["Background", "RV", "Myo"], [0, 1, 2], ["Background", "RV", "Myo"]),
        (None, [0, 1, 2], ["background", "class 1", "class 2"]),
        ([{"name": "b", "index": [2]}, {"name": "a", "index": [1]}], [0, 1], ["background", "a", "b"]),
    ],
)
def test_a_name_belongs_to_one_value(given, labels, names):
    """Whatever values the labelled scans happen to show."""
    algo_class()
    assert importlib.import_module("semsim.scripts.classes").names_in_order(given, labels) == names


LIVER_AND_TUMOUR = {"class_names": [{"name": "liver", "index": [1]}, {"name": "tumour", "index": [2]}]}


@pytest.mark.parametrize(
    ("given", "labels", "names", "refused"),
    [
        # no labelled scan shows the tumour, or the liver: the value of the others stays what it is
        (LIVER_AND_TUMOUR, (0, 1), ["liver", "tumour"], ""),
        (LIVER_AND_TUMOUR, (0, 2), ["liver", "tumour"], ""),
        ({"class_names": ["tumour", "liver"], "class_index": [[2], [1]]}, (0, 1, 2), ["liver", "tumour"], ""),
        ({"class_names": [{"name": "liver", "index": 1}, {"name": "unsure", "index": 9}], "ignore_label": 9},
         (0, 1, 9), ["liver"], ""),
        ({"class_names": ["tumour", "liver"], "class_index": [[2]]}, (0, 1, 2), [], "values for each of class_names"),
        ({"class_names": [{"name": "tumour", "index": [4]}]}, (0, 1, 4), [], "renumber"),
        ({}, (1, 2), [], "renumber"),
    ],
)  # fmt: skip
def test_values_that_the_input_gives_to_its_names(tmp_path, given, labels, names, refused):
    algo = filled(tmp_path, stats((1.5, 1.5, 10), (120, 120, 9), labels), given)
    skip, reason = algo.pre_check_skip_algo()
    assert skip == bool(refused) and refused in reason, reason
    if skip:
        return
    algo.export_to_disk(str(tmp_path), "semsim_0", fold=0)
    content = yaml.safe_load((tmp_path / "semsim_0" / "configs" / "hyper_parameters.yaml").read_text())
    assert content["class_names"] == ["background", *names]


def test_data_that_moved_along_are_found(tmp_path, caplog):
    caplog.set_level("INFO")
    algo_class()
    moved_along = importlib.import_module("semsim.scripts.options").moved_along
    old, new = tmp_path / "old", tmp_path / "new" / "deeper"
    for place in (old, new):
        (place / "work" / "semsim_0").mkdir(parents=True)
        (place / "list.json").touch()
    (old / "only.json").touch()
    here, there = str(old / "work" / "semsim_0"), str(new / "work" / "semsim_0")
    assert moved_along(str(old / "list.json"), here, here) == str(old / "list.json")
    assert moved_along(str(old / "list.json"), here, there) == str(new / "list.json") and here in caplog.text
    assert moved_along(str(old / "only.json"), here, there) == str(old / "only.json"), "it did not move"
    assert moved_along(str(old / "list.json"), None, there) == str(old / "list.json")
    # above every folder there is another one, which is only then that of the images if it has them
    listed = new / "list.json"
    listed.write_text(json.dumps({"training": [{"image": ["images/a.nii.gz"]}]}))
    assert moved_along(str(old), here, there, str(listed)) == str(old), "the folder moved alone"
    (new / "images").mkdir()
    (new / "images" / "a.nii.gz").touch()
    assert moved_along(str(old), here, there, str(listed)) == str(new)


def test_ct_names_and_input_keys(tmp_path, caplog):
    """A CT range, named label groups, and keys of the input that override what the data suggest."""
    algo = algo_class()(str(TEMPLATES))
    algo.name = "semsim"
    items = [{"image": f"{k}.nii.gz", "label": f"l{k}.nii.gz"} for k in range(4)]
    (tmp_path / "list.json").write_text(json.dumps({"training": items, "testing": [{"image": "t.nii.gz"}]}))
    given = {"modality": "CT", "datalist": str(tmp_path / "list.json"), "dataroot": str(tmp_path),
             "class_names": [{"name": "liver", "index": [1]}, {"name": "lesion", "index": [2, 3]}],
             "learning_rate": 0.03, "num_epochs": 12, "auto_scale_allowed": True, "loss#lambda_u": 0.4,
             "roi_size": [96, 96, 32], "learnin_rate": 1, "output_dir": "elsewhere"}  # fmt: skip
    (tmp_path / "input.yaml").write_text(yaml.safe_dump(given))
    (tmp_path / "stats.yaml").write_text(yaml.safe_dump(stats((0.8, 0.8, 5), (512, 512, 60), (0, 1, 2, 3))))
    algo.set_data_source(str(tmp_path / "input.yaml"))
    algo.set_data_stats(str(tmp_path / "stats.yaml"))
    algo.export_to_disk(str(tmp_path), "semsim_0", fold=1, gpu_customization=True, no_such_key=5)
    content = yaml.safe_load((tmp_path / "semsim_0" / "configs" / "hyper_parameters.yaml").read_text())
    assert content["class_names"] == ["background", "liver", "lesion 2", "lesion 3"]
    assert (content["intensity"]["a_min"], content["intensity"]["a_max"]) == (-120.0, 240.0)
    assert content["epochs"] == 12 and content["learning_rate"] == 0.03 and content["fold"] == 1
    assert content["working_resolution"] > 0.8 and not {"no_such_key", "learnin_rate", "auto_scale_allowed"} & set(
        content
    )
    assert "no key no_such_key" in caplog.text and "input.yaml: SemSim has no key auto_scale_allowed" in caplog.text
    assert "no key learnin_rate (is learning_rate meant?)" in caplog.text
    # keys within the configuration; a size of three dimensions is for other algorithms; results stay where they belong
    assert content["loss#lambda_u"] == 0.4
    assert content["spatial_size"] == [128, 128] and "roi_size [96, 96, 32]" in caplog.text
    assert content["output_dir"] == "$@bundle_root + '/model_fold' + str(@fold)" and "output_dir stays" in caplog.text
    parser = ConfigParser()
    parser.read_config([str(tmp_path / "semsim_0" / "configs" / f"{n}.yaml") for n in ("train", "hyper_parameters")])
    assert parser["loss"]["lambda_u"] == 0.4
    assert parser.get_parsed_content("val_interval") == 1
    parser["epochs"] = 60
    assert parser.get_parsed_content("val_interval") == 3, "20 validations, whatever epochs is set to"
    with pytest.raises(ValueError, match=r"spatial_size .* expected the pixels of a slice, one or two numbers"):
        algo.export_to_disk(str(tmp_path), "semsim_1", fold=1, spatial_size=[96, 96, 32])
    # minutes stand in for the epochs that the input gives, and for the validations that follow from them
    algo.export_to_disk(str(tmp_path), "semsim_2", fold=1, minutes=7)
    by_clock = yaml.safe_load((tmp_path / "semsim_2" / "configs" / "hyper_parameters.yaml").read_text())
    assert by_clock["minutes"] == 7 and by_clock["epochs"] is None
    parser.update({"minutes": 7, "epochs": None})
    assert parser.get_parsed_content("val_interval") is None
    algo.export_to_disk(str(tmp_path), "semsim_0", fold=1)
    # a search writes the same records elsewhere, with a value changed
    json.dumps(algo.state_dict())
    algo.export_to_disk(str(tmp_path), "semsim_0_lr", fill_with_datastats=False, learning_rate=0.1)
    again = yaml.safe_load((tmp_path / "semsim_0_lr" / "configs" / "hyper_parameters.yaml").read_text())
    changed = {k for k in again if again[k] != content[k]}
    assert changed == {"bundle_root", "generated_in", "learning_rate"} and again["learning_rate"] == 0.1
    assert (tmp_path / "semsim_0_lr" / "scripts" / "training" / "trainer.py").exists()


def test_a_search_over_a_key_within_another(tmp_path):
    """MONAI calls the folder of a trial after the keys, and cannot have their `#` in a path."""
    algo = filled(tmp_path, stats((1.5, 1.5, 10), (120, 120, 9)), {})
    algo.export_to_disk(str(tmp_path), "semsim_0", fold=0)
    for search, key in ((OptunaGen, "loss#lambda_u"), (NNIGen, "loss::lambda_u")):
        trial = search(algo=algo)
        trial.update_params({key: 0.3})
        trial.generate(str(tmp_path / "search"))
        folder = tmp_path / "search" / "semsim_0_loss.lambda_u_0.3"
        assert Path(algo.get_output_path()) == folder and (folder / "configs" / "hyper_parameters.yaml").is_file()
        assert Path(algo_to_json(algo, template_path=algo.template_path)) == folder / "algo_object.json"
        algo.output_path = str(tmp_path / "semsim_0")
        shutil.rmtree(folder)


def test_strings_of_a_command_line():
    sys.path.append(str(TEMPLATES))
    options = importlib.import_module("semsim.scripts.options")
    converted = options.converted
    known = ConfigParser()
    known.read_config(str(ROOT / "bundle" / "configs" / "train.yaml"))
    given = {"class_names": "background,RV", "roi_size": "32,32", "fusion_checkpoint": "true"}
    expected = {"class_names": ["background", "RV"], "spatial_size": [32, 32], "fusion_checkpoint": True}
    assert options.understood(given, known, source="") == expected
    for value, like, expected in [
        ("16,16", 224, [16, 16]),
        ((16, 16), None, [16, 16]),
        ("background,RV", ["background"], ["background", "RV"]),
        ("[a, b]", ["c"], ["a", "b"]),
        ("False", True, False),
        ("true", False, True),
        ("a,b", "c", "a,b"),
        ("$max(1, 2)", 1, "$max(1, 2)"),
        (3, True, 3),
    ]:
        assert converted(value, like, "key") == expected, value


@pytest.mark.parametrize(
    ("said", "given", "names"),
    [
        ({"0": "background", "1": "organ", "255": "ignore"}, {}, ["background", "class 1"]),
        ({"background": 0, "organ": 1, "ignore": 255}, {"class_names": ["organ"]}, ["background", "organ"]),
        ({"0": "background", "255": "ignore"}, {"ignore_label": 1}, None),  # the input goes first
        ({"0": "background", "organ": [1, 2]}, {}, None),
    ],
)
def test_what_the_datalist_says_of_voxels_to_ignore(tmp_path, said, given, names):
    """The value that its `labels` call `ignore`, as the training of the fold reads it."""
    algo = filled(tmp_path, stats((1.5, 1.5, 10), (120, 120, 9), labels=(0, 1, 255)), given)
    listed = json.loads((tmp_path / "list.json").read_text())
    (tmp_path / "list.json").write_text(json.dumps({"labels": said, **listed}))
    skip, reason = algo.pre_check_skip_algo()
    assert skip == (names is None), reason
    if skip:
        assert ("renumber" if given else "regions of several values") in reason
        return
    algo.export_to_disk(str(tmp_path), "semsim_0", fold=0)
    configs = tmp_path / "semsim_0" / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / f"{name}.yaml") for name in ("train", "hyper_parameters")])
    assert parser["class_names"] == names
    parser["datalist"] = str(tmp_path / "list.json")
    assert parser.get_parsed_content("ignore_label") == 255


def test_what_the_datalist_says_of_windows_and_values(tmp_path):
    """Its window, as `datalist create` writes it for CT, is used; classes are numbered by their values."""
    algo = filled(tmp_path, stats((1.5, 1.5, 10), (120, 120, 9), labels=(0, 1)), {})
    said = {"labels": {"0": "organ", "1": "background"}, "label_values": [1, 0], "window": [-150, 250]}
    listed = json.loads((tmp_path / "list.json").read_text())
    (tmp_path / "list.json").write_text(json.dumps({**said, **listed}))
    algo.export_to_disk(str(tmp_path), "semsim_0", fold=0)
    content = yaml.safe_load((tmp_path / "semsim_0" / "configs" / "hyper_parameters.yaml").read_text())
    assert "label_values" in content and content["label_values"] is None
    assert content["class_names"][0] == "background" and len(content["class_names"]) == 2
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundle" / "configs" / "train.yaml"))
    parser["window"], parser["intensity"] = said["window"], content["intensity"]
    found = parser.get_parsed_content("settings#intensity")  # refused where two things say it
    assert found["window"] == [-150, 250] and found["_target_"].endswith("Intensityd")
