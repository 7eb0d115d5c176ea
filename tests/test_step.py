"""The fast step computes what the naive one does, and the benchmark of steps measures what it says."""

from __future__ import annotations

import json

import naive_step
import pytest
import step
import torch
from scripts.method import fusion as fusion_module
from scripts.method.augmentation import CutMix
from scripts.method.losses import SemSimLoss
from scripts.method.network import SemSimNet, UNet
from scripts.training.trainer import twin


def batch(size: int, images: int = 3) -> dict[str, torch.Tensor]:
    """Images of every stream, their partners and boxes, in float64."""
    g = torch.Generator().manual_seed(3)

    def smooth() -> torch.Tensor:
        coarse = torch.rand(images, 1, size // 8, size // 8, generator=g, dtype=torch.float64)
        return torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")

    partner = torch.tensor([1, 2, 0])
    box_1 = torch.zeros(images, 1, size, size, dtype=torch.bool)
    box_2 = box_1.clone()
    box_1[0, :, 3:40, 5:30], box_2[1:, :, 10:50, 20:60] = True, True
    views = {name: smooth() for name in ("weak", "strong_1", "strong_2")}
    label = torch.randint(0, 4, (images, 1, size // 16, size // 16), generator=g).repeat_interleave(16, 2)
    return {
        "labeled": smooth(),
        "label": label.repeat_interleave(16, 3),
        "partner": partner,
        "box_1": box_1,
        "box_2": box_2,
        **views,
        "partner_weak": views["weak"][partner],
        "partner_1": views["strong_1"][partner],
        "partner_2": views["strong_2"][partner],
    }


@pytest.mark.parametrize("checkpointed", [False, True])
def test_fast_and_naive_step_agree_in_loss_and_gradients(monkeypatch, checkpointed):
    """Float64, same parameters, same random draws, masks that some positions pass and some do not."""
    tau = 0.6
    monkeypatch.setattr(naive_step, "TAU", tau)
    monkeypatch.setattr(fusion_module, "tokens_at_once", lambda *_: 300)  # several chunks
    torch.manual_seed(0)
    slow = naive_step.NaiveSemSim().double().train()
    data, last = batch(64), slow.backbone.final_conv
    with torch.no_grad():  # running statistics of these images, and opinions that differ from place to place
        for _ in range(20):
            slow.decode(UNet.encode(slow.backbone, data["weak"]))
        last.weight *= 60
        slow.eval()
        last.bias -= slow.decode(UNet.encode(slow.backbone, data["weak"])).mean(dim=(0, 2, 3))
        slow.train()
    fast = SemSimNet(fusion_checkpoint=checkpointed).double().train()
    fast.load_state_dict(slow.state_dict(), strict=True)

    torch.manual_seed(1)
    expected = slow(data)
    expected.backward()

    loss = SemSimLoss(num_classes=4, threshold=tau, perturb=["strong_1"])
    mixes = {f"strong_{i}": CutMix(data[f"box_{i}"], data["partner"]) for i in (1, 2)}
    with torch.no_grad():
        weak = twin(fast).eval()({"weak": data["weak"]}, loss.weak_streams())
    torch.manual_seed(1)
    images = {"labeled": data["labeled"], **{name: mix(data[name]) for name, mix in mixes.items()}}
    terms = loss(fast(images, loss.student_streams()), data["label"], weak, mixes)
    terms["loss"].backward()

    for name in ("mask_u", "mask_intra", "mask_cross"):
        assert 0.1 < terms[name] < 0.95, "the masks hide something and show something"
    assert len({c for c in range(4) if terms[f"pseudo_{c}"] > 0.02}) > 1
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-8)
    gradients = dict(slow.named_parameters())
    largest = max(p.grad.abs().max() for p in slow.parameters())
    for name, p in fast.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name].grad, rtol=1e-6, atol=1e-9 * largest.item(), msg=name)
    for (name, b), (_, c) in zip(slow.named_buffers(), fast.named_buffers()):
        torch.testing.assert_close(b, c, msg=name)


def test_checkpointing_saves_memory_and_nothing_else():
    """Fewer bytes are kept for the backward pass; features, gradients and running statistics are the same."""
    kept, results = [], []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        fusion = fusion_module.SpatialAwareFusion(2, (8, 16, 32), 16, checkpointed=checkpointed).double().train()
        stages = [
            torch.rand(2, c, n, n, dtype=torch.float64, requires_grad=True) for c, n in ((8, 40), (16, 20), (32, 10))
        ]
        sizes: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t)
        with hooks:
            result = fusion(stages)
        kept.append(sum(sizes))
        result.square().sum().backward()
        results.append([result, *(s.grad for s in stages), *(p.grad for p in fusion.parameters()), *fusion.buffers()])
    assert kept[1] < 0.4 * kept[0], kept
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [(33, 47), (64, 64)])
def test_chunks_of_windows_do_not_show(monkeypatch, size):
    torch.manual_seed(0)
    fusion = fusion_module.SpatialAwareFusion(2, (8, 16, 32), 16).double().eval()
    stages = [torch.rand(2, c, size[0] // k, size[1] // k, dtype=torch.float64) for c, k in ((8, 1), (16, 2), (32, 4))]
    whole = fusion(stages)
    monkeypatch.setattr(fusion_module, "tokens_at_once", lambda *_: 100)
    torch.testing.assert_close(fusion(stages), whole)


def test_steps_are_measured(tmp_path, capsys):
    """A run of the benchmark on small images: all methods, figures that can be, a table that shows them."""
    out = tmp_path / "step.json"
    step.measure(str(out), sizes=(32,), methods=("unimatch", "semsim_naive"), repeats=2, threads=1, with_affinity=False)
    result = json.loads(out.read_text())
    rows = result["sizes"]["32"]["methods"]
    for name, row in rows.items():
        assert row["gflop"] > 0 and row["peak_bytes"] > 2**20 and row["other_elements_g"] > 0, name
        assert 0 < row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"], name
        assert 0 < row["share_of_matmul_rate"] < 2, name
    assert rows["semsim_naive"]["gflop"] > 1.5 * rows["unimatch"]["gflop"]
    assert "| unimatch | " in capsys.readouterr().out


def test_steps_in_3d_are_measured(tmp_path, capsys):
    out = tmp_path / "step.json"
    step.measure(str(out), [[16, 16, 16]], "labeled_only", repeats=1, threads=1, with_affinity=False)
    (row,) = json.loads(out.read_text())["sizes"]["16 x 16 x 16"]["methods"].values()
    voxels = 4 * 16**3
    assert row["gflop"] > voxels * 2 * 27 * (16 * 16 + 3 * 16 * 16) * 3 / 1e9, (
        "the convolutions of the first level alone"
    )
    assert "\n16 x 16 x 16, cpu, " in capsys.readouterr().out


def test_attention_is_counted():
    """What torch's counter leaves out on a CPU: two products forward, five backward."""
    q = torch.rand(1, 2, 16, 8, requires_grad=True)
    flops = (
        step.count(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward())["gflop"] * 1e9
    )
    assert flops == 7 * 2 * 2 * 16 * 16 * 8
