"""Checks of the configuration about to run, wherever its keys come from: those that nothing reads, broken entries."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from .config_values import wrong_values

#: Keys that hold a component, which no text, number or list can stand for.
PARTS = ("intensity", "read_volume", "cutmix", "network_def", "loss", "optimizer", "lr_scheduler", "trainer_def",
         "evaluator_def")  # fmt: skip
REFERENCE = re.compile(r"[@%]([A-Za-z_]\w*)")
#: What MONAI and its tracking put into a configuration.
FOREIGN = {"_meta_", "_requires_", "imports", "run_name", "tracking_uri", "experiment_name", "save_execute_config"}


def nearest_key(key: str, known: Iterable[str], prefix: str = "") -> str:
    """What to do about a key that nothing reads, for a message."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else "docs/REFERENCE.md has the keys."


def problems_of(workflow: ConfigWorkflow) -> list[str]:
    """A line for each key that nothing reads, each value or path that means nothing, and for another bundle's code."""
    config = workflow.parser.get()
    runs = {str(name) for name in (workflow.init_id, workflow.run_id, workflow.final_id)}
    code = _other_code(Path(workflow.config_root_path).parent)
    return [*_scored(config, runs), *_unread(config, runs), *wrong_values(workflow.parser), *code]


def _scored(config: Mapping[str, Any], runs: set[str]) -> Iterator[str]:
    """A training with ``evaluate.yaml`` begins with weights to be scored, and its best is best on the test cases."""
    if "evaluate_list" in config and (wrong := runs & {"training", "planning"}):
        yield (
            f"--config_file: expected no evaluate.yaml for `run {wrong.pop()}`, which would begin with the weights "
            "to be scored; leave that file out, or to score them write `run` alone."
        )


def _unread(config: Mapping[str, Any], runs: set[str]) -> Iterator[str]:
    """Keys that are neither in the bundle's own files of this kind nor named by another entry."""
    folder = Path(__file__).resolve().parents[2] / "configs"
    own = "inference" if "evaluator" in config else "train"
    names = ["train", "hyper_parameters", "multi_gpu_train"]  # an overlay may serve training and prediction
    names += ["inference"] if own == "inference" else []
    names += ["evaluate", "multi_gpu_evaluate"] if "evaluate_list" in config else []
    files = [folder / f"{name}.yaml" for name in names]
    contents = [ConfigParser.load_config_file(str(file)) for file in files if file.is_file()]
    known = {key.replace("::", "#").split("#")[0].lstrip("+~") for part in contents for key in part} | FOREIGN | runs
    yield from _incomplete(config, contents)
    yield from _unread_within(config, contents)
    for key in [key for key in config if key not in known]:
        others = [value for name, value in config.items() if name != key]
        if not _named(key, others) and not _copied(config[key], others):
            hint = nearest_key(key, known)
            yield f"{key}: expected a key of {own}.yaml or one that an entry names, received {key!r}; {hint}"


def _incomplete(config: Mapping[str, Any], contents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Components of which some arguments alone are left: MONAI replaces an entry, it merges nothing."""
    components = {k for part in contents for k, v in part.items() if isinstance(v, Mapping) and "_target_" in v}
    for key in PARTS:
        value = config.get(key)
        if isinstance(value, (int, float, list)) or (isinstance(value, str) and value[:1] not in ("", "$", "@", "%")):
            shown = "a list; put it into a Compose" if isinstance(value, list) else repr(value)
            yield f"{key}: expected a component with its _target_, received {shown}; list a YAML file with it."
    for key in sorted(components & config.keys()):
        value = config[key]
        if isinstance(value, Mapping) and "_target_" not in value:
            single = ", ".join(f"{key}#{name}: {part!r}" for name, part in list(value.items())[:3])
            yield (
                f"{key}: expected a component with its _target_, received {', '.join(map(str, value)) or 'nothing'} "
                f"alone; to change some of its arguments write each as {single or f'{key}#NAME: VALUE'}."
            )


def _unread_within(config: Mapping[str, Any], contents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Keys of ``train`` and ``validate``, which are no component that would refuse them, likewise."""
    texts = {text.replace("::", "#") for text in _texts(config)}
    for section in ("train", "validate"):
        entries = config.get(section)
        known = {key for part in contents for key in part.get(section, {})}
        for key in [key for key in entries if key not in known] if isinstance(entries, Mapping) and known else ():
            name = f"{section}#{key}"
            if not any(f"@{name}" in text or f"%{name}" in text for text in texts):
                hint = nearest_key(key, [*known, *config])
                yield f"{name}: expected a key that an entry reads, received {key!r}, which none does; {hint}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value


def _named(key: str, others: list[Any]) -> bool:
    return any(key in REFERENCE.findall(text) for text in _texts(others))


def _copied(content: Any, others: Any) -> bool:
    """Whether some entry holds the content: MONAI puts it in the place of ``%key`` when it reads a configuration."""
    if not isinstance(content, (Mapping, list)) or not content:
        return False
    parts = list(others.values()) if isinstance(others, Mapping) else others if isinstance(others, list) else []
    return any(part == content or _copied(content, part) for part in parts)


def _other_code(bundle: Path) -> Iterator[str]:
    """MONAI keeps the first ``scripts`` that it has imported, also for a second bundle of the same process."""
    here, there = Path(__file__).resolve().parents[1], bundle.resolve() / "scripts"
    if (there / "errors.py").is_file() and there != here:
        yield (
            f"{there}: expected the code of this bundle, but this process has loaded {here} before; run the two in "
            "separate processes."
        )
