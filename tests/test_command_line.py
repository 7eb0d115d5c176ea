"""Options that MONAI would take without a word and that would not do what they say."""

from __future__ import annotations

import re

import pytest
from conftest import BUNDLE, config_args
from scripts.__main__ import COMMANDS, main
from scripts.command_line import command
from scripts.errors import InputError, raise_all
from scripts.hosts.options import _misordered, check_options
from scripts.preparation import create, public_datasets

TRAIN = ["run", "training", "--config_file", "configs/train.yaml"]


@pytest.fixture(autouse=True)
def in_the_bundle(monkeypatch):
    monkeypatch.chdir(BUNDLE)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--epochs", "2", "--loss#threshold", "0.9", "--output-dir=x", "--use_unlabeled", "False", "--amp"],
        ["--fusion", "none", "--run_id", "training", "--slice_axis", "$None", "--amp", "true"],
        ["--tracking", "mlflow", "--experiment_name", "a", "--logging_file", "configs/logging.conf"],
        ["-epochs", "2", "-amp", "--learning_rate", "-1", "--initial", "", "--run_id=training"],
        ["--train::trainer::amp_kwargs", "{}", "--datalist", "$@dataset_dir + '/x--y.json'"],
    ],
)
def test_options_that_mean_something(options):
    check_options(["program", *TRAIN, *options])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--use_unlabeled", "false"], "--use_unlabeled: expected False, received 'false'.* --use_unlabeled False."),
        (["--allow-outside=false"], "--allow_outside: expected False"),
        (["--loss#average_images", "false"], "--loss#average_images: expected False"),
        (["--slice_axis", "null"], r"--slice_axis: expected '\$None', received 'null'.* --slice_axis '\$None'"),
        (["--slice_axis=None"], r"--slice_axis: expected '\$None', received 'None'.* --slice_axis '\$None'"),
        (["--slice_axis=(None)"], r"--slice_axis: expected '\$None', received '\(None\)'"),
        (["-amp", "false"], "--amp: expected False, received 'false'"),
        (["--amp", "-slice_axis=None"], r"--slice_axis: expected '\$None', received 'None'"),
        (["-output_dr", "x"], "did you mean --output_dir?"),
        (["--output_dr", "x"], "--output_dr: expected a key of configs/train.yaml, .* did you mean --output_dir?"),
        (["--los#threshold", "0.9"], "did you mean --loss?"),
        (["--wibble"], "docs/REFERENCE.md"),
        (["--experiment_name", "a"], "--experiment_name: expected a key"),
    ],
)
def test_options_that_do_not(options, said):
    with pytest.raises(InputError, match=said) as caught:
        check_options(["program", *TRAIN, *options])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["train", "acdc", "paper", "unimatch", "evaluate", "multi_gpu_evaluate"], ""),
        (["train", "volumes", "fixmatch", "/data/train.yaml"], ""),
        (["train"], ""),
        (["semsim_minus", "train"], "expected train.yaml before semsim_minus, which it would undo"),
        (["evaluate", "train"], "expected train.yaml before evaluate"),  # which would train
        (["acdc", "/data/own.yaml", "inference"], "expected inference.yaml before acdc, /data/own.yaml, which"),
        (["train", "unimatch", "paper"], "expected paper.yaml before unimatch"),
        (["train", "semsim_minus", "demo", "volumes"], "expected volumes.yaml before semsim_minus, which"),
    ],
)
def test_a_file_is_not_undone_by_one_behind_it(files, said):
    lines = _misordered([name if "/" in name else f"configs/{name}.yaml" for name in files])
    assert len(lines) == bool(said) and all(said in line for line in lines)


def test_the_order_is_looked_at(monkeypatch):
    with pytest.raises(InputError, match=r"expected train\.yaml before semsim_minus"):
        check_options(["program", "run", "--config_file", "['configs/semsim_minus.yaml','configs/train.yaml']"])


def test_a_function_does_not_run_with_an_option_that_it_has_not(monkeypatch):
    ran = []

    def draw(image: str, slices: int = 5) -> None:
        ran.append((image, slices))

    monkeypatch.setattr("sys.argv", ["overlay", "--image", "a.png", "--label=b.png"])
    with pytest.raises(InputError, match="Unknown option --label; see --help"):
        command(draw)
    assert not ran
    monkeypatch.setattr("sys.argv", ["overlay", "a.png", "--slices", "-3"])
    command(draw)
    assert ran == [("a.png", -3)]
    for start, words, wrong in (
        (create.main, ["create", "--images", "x"], "validaton"),
        (public_datasets.main, ["acdc"], "spilt"),
    ):
        monkeypatch.setattr("sys.argv", ["program", *words, f"--{wrong}", "1"])
        with pytest.raises(InputError, match=f"Unknown option --{wrong}; see --help"):
            start()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "overlay: expected --image, --output as well; see --help"),
        (["a.png"], "overlay: expected --output as well"),
        (["--output=b.png"], "overlay: expected --image as well"),
        (["a.png", "b.png", "c.png"], "overlay: 'c.png' belongs to no option. Several values"),
        (["--image", "a.png", "c.png", "--output", "b.png"], "overlay: 'c.png' belongs to no option"),  # --image *.png
        (["a.png", "b.png", "--slices", "1", "2"], "overlay: '2' belongs to no option"),
        (["a.png", "--output"], "--output: expected a value behind it, received none; give one"),  # an empty variable
        (["--output", "--image", "a.png"], "--output: expected a value behind it, received none"),
    ],
)
def test_no_word_goes_to_an_option_that_nobody_named(monkeypatch, words, said):
    """Fire gives a second file of `--image *.png`, or a second value, to the next option that was left out."""
    ran = []

    def overlay(image: str, output: str, slices: int = 5, truth: str = "") -> None:
        ran.append(image)

    monkeypatch.setattr("sys.argv", ["overlay", *words])
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        command(overlay)
    assert not ran and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_how_to_call_it_and_every_option(capsys, monkeypatch, name):
    """In the words of the docstring, and without what fire makes of it: GROUP, FIRE_METADATA, Optional['Any']."""
    words = [name, "create"] if name == "datalist" else [name]
    monkeypatch.setattr("sys.argv", ["semsim", *words, "--help"])
    main()
    said = capsys.readouterr().out
    assert said.startswith(f"usage: semsim {' '.join(words)} ") and not re.search(
        "FIRE|GROUPS|GROUP |Optional|Any|``", said
    )
    options = {"datalist": "--group_by GROUP_BY +Regular expression", "merge": "--classes CLASSES +Names of the",
               "benchmark": "--release RELEASE +acdc,", "report": "--output_dir OUTPUT_DIR\\s+Its folder",
               "overlay": "--slices SLICES +How many.*\n.*default: 5", "export": "--output OUTPUT +File"}  # fmt: skip
    assert re.search(options[name], said)


def test_a_command_of_another_name_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["semsim", "datalist", "make", "--images", "x"])
    with pytest.raises(InputError, match="Expected semsim datalist create, received 'make'"):
        main()
    monkeypatch.setattr("sys.argv", ["semsim", "datalist"])
    main()
    assert "usage: semsim datalist create [options]" in capsys.readouterr().out


def test_a_folder_may_be_called_by_a_number(monkeypatch):
    ran = []

    def write(output_dir: str, ckpt_path: str | None = None, seed: int = 0) -> None:
        ran.append((output_dir, ckpt_path, seed))

    monkeypatch.setattr("sys.argv", ["report", "20241105", "--ckpt_path", "007", "--seed", "3"])
    command(write)
    assert ran == [("20241105", "007", 3)]


@pytest.mark.parametrize("words", [["--output_dir=~/run"], ["--output-dir", "~"]])
def test_a_tilde_that_no_shell_replaced_names_no_folder(monkeypatch, words):
    ran = []
    monkeypatch.setattr("sys.argv", ["report", *words])

    def write(output_dir: str) -> None:
        ran.append(output_dir)

    with pytest.raises(
        InputError, match=r"--output_dir: expected a path, received '~.* give the whole path, or a space"
    ):
        command(write)
    monkeypatch.setattr("sys.argv", ["report", "./~/run"])
    command(write)
    assert ran == ["./~/run"]


@pytest.mark.parametrize(
    ("words", "ran"),
    [(["--dry_run", "false"], None), (["--dry-run=no"], None), (["--dry_run", "b.png"], None), (["--dry_run"], True),
     (["--dry_run", "False"], False), (["--dry_run=0"], 0), (["--dry_run=True"], True)],
)  # fmt: skip
def test_no_text_is_taken_for_a_switch(monkeypatch, words, ran):
    """Fire takes `false` for a text, which is true."""
    calls = []

    def write(image: str, dry_run: bool = False) -> None:
        calls.append(dry_run)

    monkeypatch.setattr("sys.argv", ["write", "a.png", *words])
    if ran is None:
        with pytest.raises(InputError, match="--dry_run: expected True or False, received '"):
            command(write)
    else:
        command(write)
    assert calls == [] if ran is None else calls == [ran]


def test_all_at_once():
    with pytest.raises(InputError, match="2 problems in the options:") as caught:
        check_options(["program", *TRAIN, "--amp", "false", "--epoch", "2"])
    assert re.search(r"--amp.*\n.*did you mean --epochs", str(caught.value))


@pytest.mark.parametrize("configs", [("train",), ("train", "evaluate"), ("inference",)])
def test_a_command_ends_with_a_line_before_it_does_anything(run_bundle, tmp_path, configs):
    run = run_bundle("run", *config_args(*configs), "--output_dir", str(tmp_path / "out"), "--show_progress", "false",
                     check=False)  # fmt: skip
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "ERROR: --show_progress: expected False, received 'false'" in run.stderr
    assert not (tmp_path / "out").exists()


def test_other_programs_are_none_of_its_business(monkeypatch):
    for argv in (["pytest", "--amp", "false"], ["/x/monai/bundle/__main__.py", "ckpt_export", "--amp", "false"]):
        monkeypatch.setattr("sys.argv", argv)
        check_options()
    monkeypatch.setattr("sys.argv", ["/x/monai/bundle/__main__.py", "run", "--amp", "false"])
    with pytest.raises(InputError):
        check_options()
    monkeypatch.setenv("MONAI_LABEL_STUDIES", "/studies")
    check_options()


def test_a_line_is_said_once_however_many_files_meet_it():
    with pytest.raises(InputError) as caught:
        raise_all(["trust: expected header.", "trust: expected header."])
    assert str(caught.value) == "trust: expected header."
