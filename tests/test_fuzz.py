"""Datalists and folders of any content give a plan that holds together, or one clear error."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scripts.dataio.datalist import LISTS, evaluation_key, read_datalist, read_images
from scripts.errors import InputError
from scripts.preparation.create import create

QUIET = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

names = st.sampled_from(["a.nii.gz", "b.nii.gz", "sub/c.nii.gz", "missing.nii.gz", "../up.nii.gz", "/etc/hostname", "",
                         "a.nii.gz\0", "ü \n.nii.gz", "x" * 300])  # fmt: skip
scalars = st.none() | st.booleans() | st.integers(-3, 9) | st.floats(allow_nan=False) | names
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(names, scalars, max_size=2)
items = st.one_of(
    values,
    st.fixed_dictionaries(
        {"image": names | values},
        optional={"label": names | values, "fold": values, "labeled_slices": values, "stream": values},
    ),
)
contents = st.dictionaries(
    st.sampled_from([*LISTS, "labels", "other"]), st.lists(items, max_size=3) | values, max_size=5
)
sound = st.fixed_dictionaries(
    {"training": st.lists(st.just({"image": "a.nii.gz", "label": "b.nii.gz"}), max_size=1)},
    optional={"unlabeled": st.lists(st.just({"image": "sub/c.nii.gz"}), max_size=1)},
)


def folder_with(files: dict[str, str]) -> Path:
    folder = Path(tempfile.mkdtemp())
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@QUIET
@given(
    content=contents | sound | values,
    key=st.sampled_from(LISTS),
    fold=st.none() | st.integers(0, 1),
    unlabeled_key=st.sampled_from(["unlabeled", "testing", "other"]),
)
@example(content={"training": [{"image": []}]}, key="training", fold=None, unlabeled_key="unlabeled")
@example(content={"training": [{"image": {"a": 1}}]}, key="training", fold=None, unlabeled_key="unlabeled")
def test_any_json_as_datalist(content, key, fold, unlabeled_key):
    folder = folder_with({"a.nii.gz": "", "b.nii.gz": "", "sub/c.nii.gz": ""})
    (folder / "list.json").write_text(json.dumps(content))
    try:
        read = read_datalist(folder / "list.json", folder, key, fold=fold, unlabeled_key=unlabeled_key)
        for item in read:
            files = item["image"] if isinstance(item["image"], list) else [item["image"]]
            assert files and all(os.path.isabs(f) and os.path.exists(f) for f in files)
            if key == "unlabeled":
                assert "label" not in item
            elif key in ("training", "validation"):
                assert os.path.exists(item["label"])
    except InputError as error:
        assert str(folder) in str(error)
    for call in (lambda: evaluation_key(folder / "list.json"), lambda: read_images(folder, folder / "list.json")):
        try:
            call()
        except InputError as error:
            assert str(folder) in str(error)
    shutil.rmtree(folder)


@QUIET
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_as_datalist(data):
    folder = folder_with({})
    (folder / "list.json").write_bytes(data)
    try:
        read_datalist(folder / "list.json", folder, "training")
    except InputError as error:
        assert str(folder / "list.json") in str(error)
    shutil.rmtree(folder)


part = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
file_names = st.builds(
    lambda stem, folder, ending: f"{folder}{stem}{ending}",
    st.sampled_from(["p1", "p2_frame01", "p2_frame02", "p3", ".hidden"]) | part.filter(lambda n: n not in (".", "..")),
    st.sampled_from(["", "visit/", "p2/"]),
    st.sampled_from([".nii.gz", ".nii", ".png", ".txt", "", ".NII.GZ", "_seg.nii.gz", ".dcm"]),
)


@QUIET
@given(
    images=st.lists(file_names, max_size=6),
    labels=st.lists(file_names, max_size=4),
    counts=st.tuples(*[st.integers(0, 3)] * 3),
    options=st.fixed_dictionaries({}, optional={
        "group_by": st.sampled_from([r"^(p\d)", "(", "x", r"(y)?"]),
        "label_suffix": st.just("_seg"),
        "seed": st.integers(0, 3),
        "class_names": st.sampled_from(["background,heart", ["background"]]),
    }),
)  # fmt: skip
@example(images=["p1.nii.gz"], labels=["p1.nii.gz"], counts=(0, 0, 1), options={})
def test_any_folders(images, labels, counts, options):
    """Every patient lands in one list; what is trained on or scored has its label."""
    folder = folder_with({})
    for kind, found in (("images", images), ("labels", labels)):
        (folder / kind).mkdir()
        for name in found:
            path = folder / kind / name
            if not path.exists() and not path.parent.is_file():
                path.parent.mkdir(exist_ok=True)
                path.write_text("")
    try:
        create(str(folder / "images"), str(folder / "labels"), str(folder / "list.json"), labeled=counts[0],
               validation=counts[1], testing=counts[2], check=False, **options)  # fmt: skip
    except InputError as error:
        assert not (folder / "list.json").exists() and len(str(error)) > 20
    else:
        content = json.loads((folder / "list.json").read_text())
        listed = [item["image"] for name in LISTS for item in content[name]]
        assert len(listed) == len(set(listed))
        assert content["training"] or (counts[0] == 0 and content["testing"]), "to train on, or to score alone"
        for name in filter(content.get, LISTS):
            for item in read_datalist(folder / "list.json", folder, name):
                assert os.path.exists(item["image"]) and ("label" in item) == (name != "unlabeled")
    shutil.rmtree(folder)
