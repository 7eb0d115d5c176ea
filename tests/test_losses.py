"""Each term of the loss: its value against the reference, where its gradient goes, and what masks it."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import reference
import torch
import yaml
from conftest import BUNDLE
from scripts.method.augmentation import CutMix
from scripts.method.fusion import resize
from scripts.method.losses import SemSimLoss, masked_dice
from scripts.method.network import Output, SemSimNet

TERMS = {"loss_u": "lambda_u", "loss_intra": "lambda_intra", "loss_cross": "lambda_cross"}
OFF = {"lambda_u": 0.0, "lambda_intra": 0.0, "lambda_cross": 0.0}
#: what the paper prints, before any of our handling
LITERAL = {
    key.removeprefix("loss#"): value
    for key, value in yaml.safe_load((BUNDLE / "configs" / "literal.yaml").read_text()).items()
    if key.startswith("loss#")
}


def make_outputs(*, size=8, classes=4, batch=3, seed=0, dtype=torch.float64, grad=False):
    """Random logits and rectified features of all streams, the weak view's confident."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(shape, generator=g, dtype=dtype)

    small = size // 4 or 1
    logits = {n: (4 * rand(batch, classes, size, size)).requires_grad_(grad) for n in ("labeled", "strong_1")}
    features = {
        n: (rand(batch, 16, small, small) ** 3 + 0.01).requires_grad_(grad) for n in ("labeled", "strong_1", "strong_2")
    }
    label = torch.randint(0, classes, (batch, 1, size, size), generator=g)
    weak = Output({"weak": (20 * rand(batch, classes, size, size)).requires_grad_(grad)},
                  {"weak": (rand(batch, 16, small, small) ** 3 + 0.01).requires_grad_(grad)})  # fmt: skip
    return Output(logits, features), weak, label


def test_masked_dice_by_hand():
    p = torch.tensor([[[0.8, 0.4], [0.2, 0.6]]]).double()  # (1, 2 classes, 2 pixels)
    target = torch.tensor([[0, 1]])
    everywhere = torch.ones(1, 2, dtype=torch.bool)
    # class 0: 2 * 0.8 / (0.64 + 0.16 + 1); class 1: 2 * 0.6 / (0.04 + 0.36 + 1)
    expected = 1 - (1.6 / 1.8 + 1.2 / 1.4) / 2
    assert masked_dice(p, target, everywhere).item() == pytest.approx(expected, abs=1e-5)
    first = torch.tensor([[True, False]])
    # class 0: 2 * 0.8 / (0.64 + 1); class 1: 0 / 0.04
    assert masked_dice(p, target, first).item() == pytest.approx(1 - (1.6 / 1.64 + 0.0) / 2, abs=2e-4)


def test_masked_dice_equals_reference_and_survives_empty_masks():
    torch.manual_seed(0)
    p = torch.rand(2, 3, 5, dtype=torch.float64).softmax(dim=1).requires_grad_()
    target, mask = torch.randint(0, 3, (2, 5)), torch.rand(2, 5) > 0.4
    expected = reference.masked_dice(p.detach().numpy(), target.numpy(), mask.numpy())
    assert masked_dice(p, target, mask).item() == pytest.approx(expected, abs=1e-9)
    assert torch.autograd.gradcheck(lambda q: masked_dice(q, target, mask), (p,))
    nothing = masked_dice(p, target, torch.zeros_like(mask))
    nothing.backward()
    assert nothing.item() == 0 and torch.all(p.grad == 0)
    with pytest.raises(ValueError, match="expected, received"):
        masked_dice(p, target[:, :4], mask)


def test_every_term_equals_reference():
    student, weak, label = make_outputs()
    size, small = (8, 8), (2, 2)
    box = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    box[0, :, 2:7, 0:4] = True
    box[2, :, 0:3, 5:8] = True
    partner = torch.tensor([1, 2, 0])
    mixes = {"strong_1": CutMix(box, partner), "strong_2": CutMix(box.flip(-1), partner)}
    loss = SemSimLoss(num_classes=4, threshold=0.5, uncertainty_scale=10.0, regions=2)
    terms = loss(student, label, weak, mixes)

    def pasted(x, mix):
        box = reference.nearest(mix.box[:, 0].numpy(), x.shape[-2:])
        return np.where(box, x[mix.partner.numpy()], x)

    def flat(x):
        return x.reshape(*x.shape[:-2], -1)

    p_w = weak.logits["weak"].softmax(dim=1)
    conf, pseudo = (t.numpy() for t in p_w.max(dim=1))
    expected = reference.masked_dice(
        flat(student.logits["strong_1"].softmax(dim=1).numpy()),
        flat(pasted(pseudo, mixes["strong_1"])),
        flat(pasted(conf >= 0.5, mixes["strong_1"])),
    )
    assert terms["loss_u"].item() == pytest.approx(expected, abs=1e-6)

    p_w_small = resize(p_w, small)
    sure = p_w_small.amax(dim=1).numpy() >= 0.5
    tokens = [f.flatten(1).T.numpy() for f in weak.features["weak"]]
    p_w1 = np.stack([reference.refine(f, p.flatten(1).T.numpy(), 0.1) for f, p in zip(tokens, p_w_small)])
    target = p_w1.argmax(axis=-1).reshape(3, *small)
    p_s = resize(student.logits["strong_1"].softmax(dim=1), small)
    tokens = [f.flatten(1).T.numpy() for f in student.features["strong_1"]]
    p_in = np.stack([reference.refine(f, p.flatten(1).T.numpy(), 0.1).T for f, p in zip(tokens, p_s)])
    expected = reference.masked_dice(
        p_in, flat(pasted(target, mixes["strong_1"])), flat(pasted(sure, mixes["strong_1"]))
    )
    assert terms["loss_intra"].item() == pytest.approx(expected, abs=1e-6)

    small_label = reference.nearest(label[:, 0].numpy(), small)
    protos = reference.prototypes(student.features["labeled"].permute(0, 2, 3, 1).numpy(), small_label, 4, 2)

    def describe(features):
        f = features.permute(0, 2, 3, 1).numpy()
        p = np.stack([reference.cross_probabilities(x, protos, 3, 4, 2, 0.1, True) for x in f])
        return f, p

    _, p_w2 = describe(weak.features["weak"])
    f, p_cr = describe(student.features["strong_2"])
    target, mask = pasted(p_w2.argmax(-1), mixes["strong_2"]), pasted(sure, mixes["strong_2"])
    weight = np.stack([reference.agreement(x, protos, 3, 4, 2, 10.0) for x in f])
    entropy = -np.log(np.take_along_axis(p_cr, target[..., None], axis=-1))[..., 0]
    assert terms["loss_cross"].item() == pytest.approx((entropy * mask * weight).mean(), abs=1e-6)
    assert terms["mask_cross"].item() == pytest.approx(mask.mean(), abs=1e-6) and 0 < mask.mean() < 1

    total = terms["loss_s"] + 0.5 * terms["loss_u"] + 0.25 * terms["loss_intra"] + 0.25 * terms["loss_cross"]
    assert terms["loss"].item() == pytest.approx(total.item() / 2, abs=1e-6) and "loss_labeled" not in terms
    assert size == tuple(label.shape[2:])

    more = SemSimLoss(num_classes=4, threshold=0.5, uncertainty_scale=10.0, regions=2, lambda_labeled=0.25)
    more = more(student, label, weak, mixes)
    expected = []
    for j, f in enumerate(student.features["labeled"].permute(0, 2, 3, 1).numpy()):
        others = {k: v for k, v in protos.items() if k[0] != j}
        p_cr = reference.cross_probabilities(f, others, 3, 4, 2, 0.1, True)
        shown = {k[2] for k in others}
        for i in np.ndindex(small):
            c = small_label[(j, *i)]
            expected.append(-np.log(p_cr[(*i, c)]) if c in shown else 0.0)
    assert more["loss_labeled"].item() == pytest.approx(np.mean(expected), abs=1e-6)
    assert more["loss"].item() == pytest.approx(total.item() / 2 + 0.25 * np.mean(expected) / 2, abs=1e-6)


def test_labelled_images_described_by_each_other():
    """Not by themselves; and where nobody judged, or no other image shows the class, there is nothing to learn."""
    student, _, label = make_outputs(grad=True)
    loss = SemSimLoss(num_classes=4, regions=1, lambda_labeled=1.0)
    label[:] = 0
    label[1:, :, :4] = 1  # classes 0 and 1 in two images
    label[0, :, :4] = 2  # and 2 in the first alone
    terms = loss(student, label)
    terms["loss_labeled"].backward()
    gradient = student.features["labeled"].grad
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    with torch.no_grad():  # features that say the class
        student.features["labeled"][:] = 0.01
        student.features["labeled"][:, 0, 1] = student.features["labeled"][1:, 1, 0] = 1
        student.features["labeled"][0, 2, 0] = 1
    assert loss(student, label)["loss_labeled"] < 0.01 < terms["loss_labeled"]
    label[:] = -1
    alone = Output({"labeled": student.logits["labeled"][:1]}, {"labeled": student.features["labeled"][:1]})
    assert loss(student, label)["loss_labeled"] == 0 == loss(alone, label[:1] + 1)["loss_labeled"]


def test_supervised_term_by_hand():
    student, _, label = make_outputs(batch=2)
    p = student.logits["labeled"].softmax(dim=1).numpy()
    truth = np.take_along_axis(p, label.numpy(), axis=1)
    dice = reference.masked_dice(p.reshape(2, 4, -1), label.numpy().reshape(2, -1), np.ones((2, 64), bool))
    terms = SemSimLoss(num_classes=4)(student, label)
    assert terms["loss_s"].item() == pytest.approx(0.5 * -np.log(truth).mean() + 0.5 * dice, abs=1e-5)
    assert terms["loss"].item() == pytest.approx(terms["loss_s"].item() / 2)
    assert set(terms) == {"loss", "loss_s", *(f"label_{c}" for c in range(4))}


@pytest.mark.parametrize("fusion", ["sfm", "conv"])
@pytest.mark.parametrize("term", list(TERMS))
def test_gradient_of_each_term_alone(term, fusion):
    """It reaches the encoder, the similarity terms reach the fusion, and nothing reaches a pseudo-label."""
    torch.manual_seed(0)
    network = SemSimNet(fusion=fusion)
    loss = SemSimLoss(num_classes=4, **{**OFF, TERMS[term]: 1.0})
    images = {n: torch.rand(2, 1, 32, 32) for n in ("labeled", "strong_1", "strong_2")}
    streams = loss.student_streams()
    student = network({n: x for n, x in images.items() if n in streams.decode or n in streams.fuse}, streams)
    weak = network({"weak": torch.rand(2, 1, 32, 32)}, loss.weak_streams())
    weak_logits = (60 * weak.logits["weak"].detach()).requires_grad_()  # confident
    weak_features = {n: f.detach().requires_grad_() for n, f in weak.features.items()}
    label = torch.randint(0, 4, (2, 1, 32, 32))
    terms = loss(student, label, Output({"weak": weak_logits}, weak_features))
    assert terms[term.replace("loss", "mask")] > 0.05, "the mask is not empty"
    terms[term].backward()
    encoder = sum(p.grad.abs().sum() for p in network.backbone.conv_0.parameters() if p.grad is not None)
    fused = sum(p.grad.abs().sum() for p in network.fusion.parameters() if p.grad is not None)
    assert encoder > 0
    assert (fused > 0) == (term != "loss_u")
    assert weak_logits.grad is None and all(f.grad is None for f in weak_features.values())


def separable(gap: float = 1.0):
    """Streams whose features tell the classes apart as well as any can, and a decoder that is sure."""
    label = torch.arange(4).repeat_interleave(4).repeat(2, 16, 1)[:, None]  # (2, 1, 16, 16): four vertical stripes
    features = torch.eye(4)[label[:, 0, ::4, ::4]].movedim(-1, 1) * gap
    logits = 30 * torch.eye(4)[label[:, 0]].movedim(-1, 1)
    student = Output(
        {n: logits.clone().requires_grad_() for n in ("labeled", "strong_1")},
        {n: features.clone().requires_grad_() for n in ("labeled", "strong_1", "strong_2")},
    )
    return student, Output({"weak": logits}, {"weak": features}), label


def test_literal_settings_mask_the_cross_term_to_zero_and_the_defaults_do_not():
    student, weak, label = separable()
    literal = SemSimLoss(num_classes=4, **LITERAL)(student, label, weak)
    assert literal["mask_cross"] == 0 and literal["loss_cross"] == 0
    for settings in ({}, {"mask_source": "own"}, {"uncertainty_scale": 10.0}):
        terms = SemSimLoss(num_classes=4, **settings)(student, label, weak)
        assert terms["mask_cross"] > 0.9 and terms["loss_cross"] > 0, settings


def test_pseudo_labels_move_with_their_box():
    """A view made wholly of its partner is right exactly when it predicts its partner's pseudo-label."""
    _, weak, label = separable()
    weak = Output({"weak": torch.stack([weak.logits["weak"][0], weak.logits["weak"][0].flip(-1)])}, weak.features)
    box = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    mixes = {"strong_1": CutMix(box, torch.tensor([1, 0]))}
    loss = SemSimLoss(num_classes=4, **{**OFF, "lambda_u": 1.0})
    swapped = Output({"labeled": weak.logits["weak"], "strong_1": weak.logits["weak"].flip(0)}, {})
    same = Output({"labeled": weak.logits["weak"], "strong_1": weak.logits["weak"]}, {})
    assert loss(swapped, label, weak, mixes)["loss_u"] < 0.01 < 0.5 < loss(same, label, weak, mixes)["loss_u"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        LITERAL,
        {"mask_source": "own", "uncertainty_divergence": "cosine"},
        {"affinity_axis": "column", "refinement": "sum"},
    ],
)
@pytest.mark.parametrize("case", ["no foreground", "nothing confident", "zero features", "one class absent"])
def test_degenerate_batches_stay_finite(case, settings):
    student, weak, label = make_outputs(dtype=torch.float32, grad=True)
    weak = Output({k: v.detach() for k, v in weak.logits.items()}, {k: v.detach() for k, v in weak.features.items()})
    if case == "no foreground":
        label = torch.zeros_like(label)
    if case == "one class absent":
        label = label.clamp(max=2)
    if case == "nothing confident":
        weak = Output({"weak": torch.zeros_like(weak.logits["weak"])}, weak.features)
    if case == "zero features":
        zeros = torch.zeros_like(weak.features["weak"])
        student = Output(student.logits, {n: zeros.clone().requires_grad_() for n in student.features})
        weak = Output(weak.logits, {"weak": zeros})
    terms = SemSimLoss(num_classes=4, **settings)(student, label, weak)
    terms["loss"].backward()
    assert all(torch.isfinite(v) for v in terms.values()), terms
    for tensor in (*student.logits.values(), *student.features.values()):
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()


def test_a_class_that_no_labelled_image_shows_is_left_out_of_the_cross_term():
    """The decoder is sure of class 3 in a quarter of the image, which no label shows: p_cr cannot speak of it."""
    student, weak, label = separable()
    terms = SemSimLoss(num_classes=4)(student, label.clamp(max=2), weak)
    assert terms["mask_cross"] == pytest.approx(0.75, abs=0.01) and terms["loss_cross"] < 2
    assert SemSimLoss(num_classes=4)(student, label, weak)["mask_cross"] > 0.95


def test_streams_hold_nothing_that_no_loss_reads():
    full = SemSimLoss(num_classes=4)
    assert full.student_streams().decode == ("labeled", "strong_1"), "no decoder for the second strong view"
    assert set(full.student_streams().fuse) == {"labeled", "strong_1", "strong_2"}
    assert full.student_streams(unlabeled=False).fuse == () and full.student_streams(unlabeled=False).decode == (
        "labeled",
    )
    fixmatch = SemSimLoss(num_classes=4, lambda_intra=0, lambda_cross=0, perturb=())
    assert fixmatch.student_streams().fuse == fixmatch.weak_streams().fuse == fixmatch.student_streams().perturb == ()


def test_several_views_are_weighted():
    student, weak, label = make_outputs()
    views = {"strong_1": 0.25, "strong_2": 0.25, "weak_perturbed": 0.5}
    logits = {**student.logits, "strong_2": student.logits["strong_1"], "weak_perturbed": student.logits["strong_1"]}
    student = Output(logits, student.features)
    weights = {**OFF, "lambda_u": 1.0, "threshold": 0.5}
    several = SemSimLoss(num_classes=4, views=views, perturb=("weak_perturbed",), **weights)
    one = SemSimLoss(num_classes=4, **weights)
    assert several(student, label, weak)["loss_u"].item() == pytest.approx(one(student, label, weak)["loss_u"].item())
    assert several.student_streams().decode == ("labeled", *views) and several.student_streams().perturb == (
        "weak_perturbed",
    )


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="decoder or own"):
        SemSimLoss(num_classes=4, mask_source="teacher")


def test_views_are_known_and_count():
    with pytest.raises(ValueError, match="strong_3"):
        SemSimLoss(num_classes=4, perturb=("strong_3",))
    with pytest.raises(ValueError, match="`perturb` too"):
        SemSimLoss(num_classes=4, views={"weak_perturbed": 1.0})
    assert SemSimLoss(num_classes=4, views={"strong_1": 1.0, "strong_2": 0.0}).student_streams().decode == (
        "labeled",
        "strong_1",
    )


def test_the_defaults_of_the_loss_are_those_of_the_recipe():
    """Who takes the loss into a loop of their own gets what `train.yaml` trains with."""
    given = yaml.safe_load((BUNDLE / "configs" / "train.yaml").read_text())["loss"]
    known = {name: p.default for name, p in inspect.signature(SemSimLoss.__init__).parameters.items()}
    plain = {k: v for k, v in given.items() if k in known and not (isinstance(v, str) and v.startswith(("@", "$")))}
    assert len(plain) > 12
    loss, default = SemSimLoss(num_classes=4, **plain), SemSimLoss(num_classes=4)
    for name in vars(default):
        if not name.startswith("_"):
            assert getattr(loss, name) == getattr(default, name), name
