"""Mixed precision: one rule for every device, and the same training in it up to its rounding."""

from __future__ import annotations

import contextlib

import pytest
import torch
from helpers import make
from scripts import precision as module
from scripts.errors import InputError
from scripts.evaluation import inferer, volume_inferer
from scripts.evaluation.volume_inferer import label_inferer
from scripts.method import active_learning
from scripts.method.active_learning import Acquisition
from scripts.method.network import SemSimNet
from scripts.precision import Precision, precision
from scripts.report import samples
from scripts.report.samples import FeatureLook
from scripts.training import trainer as training


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


@pytest.fixture
def old_gpu(monkeypatch):
    """Computes as a GPU without bfloat16 does, where `amp` is not False."""

    def float16(amp, device):
        return Precision("cpu", torch.float16 if amp else torch.float32, "as an old GPU")

    for user in (inferer, volume_inferer, active_learning, samples, training):
        monkeypatch.setattr(user, "precision", float16)


def overflowing(dims: int) -> SemSimNet:
    """A network whose fourth stage overflows float16 and not float32."""
    torch.manual_seed(0)
    network = SemSimNet(dims, fusion="conv").eval()
    with torch.no_grad():
        for name, part in network.backbone.named_modules():
            if name.startswith("down_2") and isinstance(part, (torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)):
                part.weight *= 1e5
    return network


@pytest.mark.parametrize("dims, flips", [(2, False), (2, True), (3, False)])
def test_what_overflows_in_float16_is_predicted_in_float32(old_gpu, dims, flips):
    """In a validation it would end the training."""
    network, image = overflowing(dims), torch.rand(1, 1, 32, 32, 16 if dims == 3 else 3)
    with torch.no_grad():
        predicted, expected = (
            label_inferer(dims, [32, 32, 16][:dims], 16, amp=amp, flip_tta=flips).logits(image, network).softmax(dim=1)
            for amp in (True, False)
        )
    assert expected.isfinite().all()
    assert (predicted - expected).abs().mean() < 1e-4


def test_scores_for_active_learning_do_not_overflow(old_gpu):
    """An image whose score is no number would be asked for never, or always."""
    network, image = overflowing(2), torch.rand(3, 1, 32, 32)
    labeled = [{"image": x, "label": torch.randint(4, (1, 32, 32))} for x in image]
    scores = []
    for amp in (True, False):
        acquisition = Acquisition(network, num_classes=4, amp=amp)
        acquisition.learn(labeled)
        scores.append(acquisition.score(image))
    assert scores[0] == pytest.approx(scores[1], rel=1e-3) and scores[0]["disagreement"] > 0


def test_features_for_the_report_do_not_overflow(old_gpu):
    """A picture of them would be empty."""
    volume = {"image": torch.rand(1, 32, 32, 2), "label": torch.randint(4, (1, 32, 32, 2))}
    features = []
    for amp in (True, False):
        look = FeatureLook(overflowing(2), [{"image": "a.nii.gz"}], [], lambda _: volume, "cpu", slices=1, amp=amp)
        features.append(look.slices("labelled")[0].features)
    torch.testing.assert_close(*features, atol=1e-3, rtol=0)
    assert features[0].norm(dim=0).mean() == pytest.approx(1, abs=1e-3)


def test_a_training_that_overflows_in_float16_is_told_to_go_on_in_float32(old_gpu):
    for amp, remedy in ((True, "go on with --resume auto --amp False, or begin anew"), (False, None)):
        trainer, _, _ = make(amp=amp)
        trainer.data_loader.labeled.dataset.images *= 1e6
        if remedy:
            with pytest.raises(InputError, match=f"The loss is not finite.* {remedy}"):
                trainer.run()
        else:
            trainer.run()
