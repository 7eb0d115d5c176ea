"""Mixed precision: one rule for every device, and the same training in it up to its rounding."""

from __future__ import annotations

import contextlib

import pytest
import torch
from scripts import precision as module
from scripts.errors import InputError
from scripts.precision import precision


@pytest.fixture
def processor(monkeypatch):
    """A processor with the features given by name."""

    def set_to(*features: str) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, **dict.fromkeys(features, True)})

    return set_to


@pytest.fixture
def gpu(monkeypatch):
    """Sets whether the first and the second GPU have bfloat16; torch answers for the current one."""
    current = [0]

    @contextlib.contextmanager
    def use(device):
        current.append(torch.device(device).index or 0)
        yield
        current.pop()

    def set_to(*has: bool) -> None:
        monkeypatch.setattr(torch.cuda, "device", use)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has[current[-1]])

    return set_to


@pytest.mark.parametrize("feature, reason", [("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")])
def test_processors_made_for_bfloat16_use_it(processor, feature, reason):
    processor(feature)
    chosen = precision("auto", "cpu")
    assert (chosen.dtype, chosen.scaled) == (torch.bfloat16, False)
    assert str(chosen) == f"bfloat16 (this processor has {reason})"
    assert precision(False, "cpu").dtype == torch.float32


def test_other_processors_and_devices_stay_with_float32_unless_told(processor):
    processor()
    assert precision("auto", "cpu").dtype == torch.float32
    assert precision("auto", torch.device("mps")).dtype == torch.float32
    assert precision(True, "cpu").dtype == torch.bfloat16
    x = torch.rand(2, 2)
    with precision("auto", "cpu").autocast():
        assert (x @ x).dtype == torch.float32
    with precision(True, "cpu").autocast():
        assert (x @ x).dtype == torch.bfloat16


@pytest.mark.parametrize("amp", ["auto", True])
def test_older_gpus_compute_in_float16_with_a_scaler(gpu, amp):
    gpu(True, False)
    chosen = precision(amp, "cuda:1")
    assert (chosen.device_type, chosen.dtype, chosen.scaled) == ("cuda", torch.float16, True)
    chosen = precision(amp, "cuda")
    assert (chosen.dtype, chosen.scaled) == (torch.bfloat16, False)
    assert precision(False, "cuda").dtype == torch.float32


def test_text_of_a_command_line_is_understood_and_nonsense_refused():
    assert precision("False", "cpu").dtype == torch.float32
    assert precision("true", "cpu").dtype == torch.bfloat16
    with pytest.raises(InputError, match="expected auto, True or False, received 'half'"):
        precision("half", "cpu")


def test_a_processor_that_cannot_be_asked_has_nothing(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert module.bfloat16_of_processor() == ""
