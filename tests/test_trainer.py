"""The two-stream step: what moves the weights, what does not, and that a run can be repeated and resumed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import yaml
from conftest import BUNDLE, ROOT
from helpers import make
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.losses import DiceCELoss
from monai.networks.nets import VNet
from scripts.dataio.sizes import Stages
from scripts.errors import InputError
from scripts.method.augmentation import RandCutMix
from scripts.training.checkpoints import ResumeCheckpoint, ResumeFrom
from scripts.training.trainer import SemSimTrainer, Teacher, frozen_statistics
from torch.optim.lr_scheduler import PolynomialLR

NO_SEMI = {"lambda_u": 0.0, "lambda_intra": 0.0, "lambda_cross": 0.0}


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_unlabelled_images_move_parameters():
    trained = []
    for use_unlabeled in (True, False):
        trainer, network, _ = make(use_unlabeled=use_unlabeled)
        trainer.run()
        trained.append(dict(network.named_parameters()))
    moved = [n for n in trained[0] if "backbone" in n and not torch.equal(trained[0][n], trained[1][n])]
    assert len(moved) > 20, "same labelled batches, other parameters"


def test_zero_weights_equal_supervised_training():
    """With every semi-supervised weight at zero the unlabelled stream changes nothing at all, buffers included."""
    trained = []
    for use_unlabeled in (True, False):
        trainer, network, _ = make(loss=NO_SEMI, use_unlabeled=use_unlabeled, epochs=2)
        trainer.run()
        trained.append(state(network))
    assert equal(*trained)


def test_without_its_similarities_semsim_minus_is_fixmatch():
    """`u_only` of the ablations and `fixmatch.yaml` are one training, so that one result stands for both."""
    changes = yaml.safe_load((ROOT / "benchmarks" / "configs" / "changes.yaml").read_text())["u_only"]
    fixmatch = yaml.safe_load((BUNDLE / "configs" / "fixmatch.yaml").read_text())
    trained = []
    for fusion, settings in (("conv", changes), (fixmatch["fusion"], fixmatch), ("conv", {})):
        loss = {key.split("#")[1]: value for key, value in settings.items() if key.startswith("loss#")}
        trainer, network, _ = make(fusion=fusion, loss=loss, epochs=2)
        trainer.run()
        trained.append(state(network.backbone))
    assert equal(trained[0], trained[1]) and not equal(trained[0], trained[2])


def test_a_hand_written_supervised_step_agrees():
    trainer, network, _ = make(use_unlabeled=False)
    before = copy.deepcopy(network)
    trainer.data_loader.set_epoch(1)
    batches = list(trainer.data_loader)
    trainer.run()
    optimizer = torch.optim.SGD(before.parameters(), lr=0.01, momentum=0.9)
    before.train()
    for batch in batches:
        optimizer.zero_grad()
        logits, label = before(batch["labeled"]["image"]), batch["labeled"]["label"]
        ce = torch.nn.functional.cross_entropy(logits, label[:, 0])
        p, y = logits.softmax(1), torch.nn.functional.one_hot(label[:, 0], 4).movedim(-1, 1)
        axes = (0, 2, 3)
        dice = 1 - (2 * (p * y).sum(axes) + 1e-5) / ((p**2).sum(axes) + y.sum(axes) + 1e-5)
        (0.5 * (0.5 * ce + 0.5 * dice.mean())).backward()
        optimizer.step()
    for (name, p), q in zip(network.named_parameters(), before.parameters()):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5, msg=name)


def test_pseudo_labels_come_from_evaluation_mode_and_leave_no_trace():
    """The weak view enters neither the graph nor, unless asked to, the running statistics."""
    seen = {}
    for mode in ("evaluation", "exclusive"):
        trainer, network, _ = make(teacher={"batch_norm": mode}, cutmix=None)
        weak = trainer.teacher.network
        norms = [m.training for m in weak.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert {*norms} == {mode == "exclusive"} and network.training
        logits = []
        weak.register_forward_hook(lambda _m, _i, out, logits=logits: logits.append(out.logits["weak"]))
        trainer.run()
        assert not any(x.requires_grad for x in logits)
        seen[mode] = int(network.backbone.conv_0.conv_0.adn.N.num_batches_tracked)
        assert network.training, "no switching of modes in mid-step"
    assert seen == {"evaluation": 2, "exclusive": 4}
    with pytest.raises(InputError, match="weak_batch_norm: expected exclusive or evaluation, received 'training'"):
        make(teacher={"batch_norm": "training"})


@pytest.mark.parametrize("use_unlabeled", [True, False])
def test_running_statistics_of_the_weak_view_alone(use_unlabeled):
    """`exclusive`: they are those of the weak batches; without unlabelled images, of the labelled ones as ever."""
    trainer, network, _ = make(teacher={"batch_norm": "exclusive"}, cutmix=None, use_unlabeled=use_unlabeled)
    seen = []
    convolution = trainer.teacher.network if use_unlabeled else network
    convolution.backbone.conv_0.conv_0.conv.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    norm = network.backbone.conv_0.conv_0.adn.N
    trainer.run()
    expected = torch.zeros(16)
    for x in seen:
        expected = 0.9 * expected + 0.1 * x.mean(dim=(0, 2, 3))
    assert len(seen) == 2 and norm.momentum == 0.1
    torch.testing.assert_close(norm.running_mean, expected)


def test_unlabelled_slices_take_part_from_their_start_on():
    """Labelled slices alone at first: no term but L_s, whose mean is all of the loss."""
    trainer, _, _ = make(stages=Stages(32, unlabeled_start=0.5), epochs=4)
    terms = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: terms.append({k: v for k, v in engine.state.scalars.items() if k.startswith("loss")}),
    )
    trainer.run()
    assert [len(t) for t in terms] == 4 * [2] + 4 * [5], "loss and L_s in two epochs of two steps, then all terms"
    assert all(t["loss"] == pytest.approx(0.5 * t["loss_s"]) for t in terms[:4])
    with pytest.raises(InputError, match=r"unlabeled_start: expected a fraction of the training, .* received 1"):
        Stages(32, unlabeled_start=1)


def test_boxes_of_labelled_images_bring_their_labels():
    """With every box wholly from labelled images, L_u is supervised: right labels make it small, whatever p_w says."""
    trainer, network, _ = make(
        cutmix=RandCutMix(prob=1.0, area=(1.0, 1.0), aspect=(1.0, 1.0), labeled_share=1.0),
        loss={"lambda_intra": 0.0, "lambda_cross": 0.0, "perturb": ()},
        sure=2.0,  # no pseudo-label counts
        fusion="none",
    )
    seen = {}

    def look(_module, args, out):
        seen.update(images=args[0], logits=out.logits["strong_1"].detach())

    network.register_forward_hook(look)
    trainer.run()
    scalars = trainer.state.scalars
    assert scalars["mask_u"] == 0 and scalars["loss_u"] > 0
    labelled = {tuple(x.flatten()[:5].tolist()) for x in trainer.data_loader.labeled.dataset.images[:, 0]}
    assert {tuple(x.flatten()[:5].tolist()) for x in seen["images"]["strong_1"]} <= labelled


@pytest.mark.parametrize("fusion", ["sfm", "conv"])
def test_scalars_are_logged_by_name(fusion):
    trainer, _, _ = make(fusion=fusion)
    trainer.run()
    scalars = trainer.state.scalars
    for name in ("loss", "loss_s", "loss_u", "loss_intra", "loss_cross", "mask_u", "mask_cross", "agreement"):
        assert math.isfinite(scalars[name]), name
    assert sum(scalars[f"pseudo_{c}"] for c in range(4)) == pytest.approx(1, abs=1e-5)
    assert trainer.state.output[0]["loss"] == pytest.approx(scalars["loss"])
    total = scalars["loss_s"] + 0.5 * scalars["loss_u"] + 0.25 * (scalars["loss_intra"] + scalars["loss_cross"])
    assert scalars["loss"] == pytest.approx(total / 2, rel=1e-5)


def test_labelled_part_is_what_postprocessing_sees():
    seen = []
    trainer, _, _ = make(postprocessing=lambda item: seen.append(item) or item)
    trainer.run()
    assert len(seen) == 8 and seen[0]["pred"].shape == (4, 32, 32) and seen[0]["label"].shape == (1, 32, 32)


def resumable(folder, resume, *, epochs=4, stop=None, scaler=None, **settings):
    """Train with a schedule and checkpoints; returns trainer, learning rates and final state."""
    trainer, network, optimizer = make(epochs=epochs, **settings)
    if scaler is not None:  # MONAI makes one in `run`
        trainer.add_event_handler(Events.STARTED, lambda: setattr(trainer, "scaler", scaler))
    schedule = PolynomialLR(optimizer, total_iters=epochs * len(trainer.data_loader), power=0.9)
    rates = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: schedule.step())
    parts = {"network": network, "optimizer": optimizer, "lr_scheduler": schedule}
    ResumeFrom(resume, str(folder), parts).attach(trainer)
    ResumeCheckpoint(str(folder), parts).attach(trainer)
    if stop:
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop), trainer.terminate)
    trainer.run()
    return trainer, rates, state(network)


QUICK = {"fusion": "none", "loss": NO_SEMI, "use_unlabeled": False}


def test_a_longer_resumed_run_follows_the_longer_schedule(tmp_path):
    _, whole, _ = resumable(tmp_path / "whole", "", epochs=6, **QUICK)
    resumable(tmp_path / "parts", "", epochs=4, **QUICK)
    _, rest, _ = resumable(tmp_path / "parts", "auto", epochs=6, **QUICK)
    assert rest == pytest.approx(whole[8:]) and min(rest) > 0


def test_a_checkpoint_with_a_moving_average_is_refused(tmp_path):
    """Of an earlier version, which also kept an empty state where there was none."""
    resumable(tmp_path, "", epochs=3, stop=1, **QUICK)
    path = tmp_path / "resume_checkpoint_1.pt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "teacher": {"n_averaged": torch.tensor(2)}}, path)
    with pytest.raises(
        InputError, match=r"checkpoint_1\.pt: .* a moving average \(ema_decay\), which this version lacks"
    ):
        resumable(tmp_path, "auto", epochs=3, **QUICK)
    torch.save({**content, "teacher": {}}, path)
    trainer, rates, _ = resumable(tmp_path, "auto", epochs=3, **QUICK)
    assert trainer.state.epoch == 3 and len(rates) == 2 * len(trainer.data_loader)


def test_resuming_with_other_steps_an_epoch_is_refused(tmp_path):
    resumable(tmp_path, "", epochs=2, **QUICK)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(InputError, match="had 2 steps an epoch, this one has 4"):
        resumable(tmp_path, "auto", epochs=2, batch_size=2, **QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_resuming_with_fewer_epochs_than_are_done_is_refused(tmp_path):
    resumable(tmp_path, "", epochs=3, **QUICK)
    with pytest.raises(InputError, match=r"has done 3 epochs, received epochs 2; give --epochs 3 or more"):
        resumable(tmp_path, "auto", epochs=2, **QUICK)
    trainer, rates, _ = resumable(tmp_path, "auto", epochs=3, **QUICK)
    assert trainer.state.epoch == 3 and rates == []


def test_resuming_from_an_older_file_keeps_what_it_writes(tmp_path):
    resumable(tmp_path, "", epochs=4, **QUICK)
    first = str(tmp_path / "resume_checkpoint_3.pt")
    resumable(tmp_path, first, epochs=5, stop=4, **QUICK)
    trainer, _, _ = resumable(tmp_path, "auto", epochs=5, **QUICK)
    assert trainer.state.epoch == 5
    assert sorted(p.name for p in tmp_path.glob("resume*")) == ["resume_checkpoint_4.pt", "resume_checkpoint_5.pt"]


def test_later_checkpoints_than_the_one_resumed_from_are_put_aside(tmp_path, caplog):
    """They were kept in place of those of the training, and `auto` took them for its newest."""

    def names(kind):
        return {path.name.removesuffix(".pt") for path in tmp_path.glob(f"{kind}*")}

    resumable(tmp_path, "", epochs=8, stop=2, **QUICK)
    first = tmp_path / "resume_checkpoint_2.pt"
    older = first.read_bytes()
    resumable(tmp_path, "auto", epochs=8, **QUICK)
    last = (tmp_path / "resume_checkpoint_8.pt").read_bytes()
    first.write_bytes(older)
    with pytest.raises(InputError, match="had 2 steps an epoch"):
        resumable(tmp_path, str(first), epochs=6, batch_size=2, **QUICK)
    assert names("resume") == {f"resume_checkpoint_{n}" for n in (2, 7, 8)}, "what is refused renames nothing"

    resumable(tmp_path, str(first), epochs=6, stop=4, **QUICK)
    assert names("resume") == {f"resume_checkpoint_{n}" for n in (3, 4)}
    assert names("abandoned") == {f"abandoned_resume_checkpoint_{n}" for n in (7, 8)}
    assert f"{tmp_path}/resume_checkpoint_8.pt: of an epoch after the checkpoint that this" in caplog.text
    assert "kept as abandoned_resume_checkpoint_8.pt, which `auto` does not take" in caplog.text
    trainer, rates, _ = resumable(tmp_path, "auto", epochs=8, **QUICK)
    assert len(rates) == 4 * len(trainer.data_loader), "epochs 5 to 8"
    first.write_bytes(older)
    resumable(tmp_path, str(first), epochs=6, stop=3, **QUICK)
    assert names("abandoned") == {f"abandoned{k}_resume_checkpoint_{n}" for k in ("", 2) for n in (7, 8)}
    assert (tmp_path / "abandoned_resume_checkpoint_8.pt").read_bytes() == last, "nothing is lost"


@pytest.mark.parametrize("overlay", ["semsim", "stages", "fixmatch", "labeled_only"])
def test_resumed_run_equals_uninterrupted_run(tmp_path, overlay):
    settings = {
        "semsim": {"teacher": {"batch_norm": "exclusive"}},
        "stages": {
            "stages": Stages(32, unlabeled_start=0.5),
            "cutmix": RandCutMix(prob=1.0, labeled_share=0.5),
        },
        "fixmatch": {"fusion": "none", "loss": {"lambda_intra": 0.0, "lambda_cross": 0.0, "perturb": ()}},
        "labeled_only": {"fusion": "none", "loss": NO_SEMI, "use_unlabeled": False},
    }[overlay]

    def run(folder, resume, stop=None):
        return resumable(folder, resume, stop=stop, **settings)[::2]

    _, whole = run(tmp_path / "whole", "")
    run(tmp_path / "parts", "", stop=2)
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == [f"resume_checkpoint_{i}.pt" for i in (1, 2)]
    trainer, resumed = run(tmp_path / "parts", "auto")
    assert trainer.state.epoch == 4 and trainer.state.iteration == 8
    assert equal(whole, resumed)
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == [f"resume_checkpoint_{i}.pt" for i in (3, 4)]
    with pytest.raises(InputError, match="--resume auto"):
        run(tmp_path / "parts", "")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_best.pt").touch()
    with pytest.raises(InputError, match=r"model_best\.pt: an earlier training"):
        run(tmp_path / "other", "")
    with pytest.raises(InputError, match="no such checkpoint"):
        run(tmp_path / "parts", "elsewhere.pt")


def test_the_files_of_another_training_are_left_alone(tmp_path):
    """Of one that has ended and whose checkpoints were deleted, and of one that the checkpoint does not belong to."""
    ended, other = tmp_path / "ended", tmp_path / "other"
    resumable(ended, "", epochs=2, **QUICK)
    resumable(other, "", epochs=2, stop=1, **QUICK)
    (checkpoint,) = other.iterdir()
    with pytest.raises(InputError, match=r"ended/resume_checkpoint_2\.pt: an earlier training has its files here"):
        resumable(ended, str(checkpoint), epochs=2, **QUICK)
    for path in ended.iterdir():
        path.unlink()
    (ended / "model_best.pt").touch()
    resumable(ended, "auto", epochs=1, **QUICK)  # it was killed before its first checkpoint
    (ended / "resume_checkpoint_1.pt").unlink()
    (ended / "model_last.pt").touch()
    with pytest.raises(InputError, match=r"ended/model_last\.pt: a training has ended here, and none of its resume"):
        resumable(ended, "auto", epochs=4, **QUICK)
    trainer, _, _ = resumable(tmp_path / "new", str(checkpoint), epochs=2, **QUICK)
    assert trainer.state.epoch == 2


def test_a_truncated_checkpoint_is_passed_over(tmp_path, caplog):
    """The power fails: the file before the newest one is taken, and said so; with none left nothing is overwritten."""
    resumable(tmp_path, "", epochs=4, stop=2, **QUICK)
    newest = tmp_path / "resume_checkpoint_2.pt"
    newest.write_bytes(newest.read_bytes()[:-500])
    trainer, rates, _ = resumable(tmp_path, "auto", epochs=4, **QUICK)
    assert trainer.state.epoch == 4 and len(rates) == 3 * len(trainer.data_loader), "epochs 2, 3 and 4"
    assert f"{newest}: expected a checkpoint" in caplog.text
    for path in tmp_path.glob("resume_*.pt"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"could not read it .* start afresh in another"):
        resumable(tmp_path, "auto", epochs=5, **QUICK)
    with pytest.raises(InputError, match=r"resume_checkpoint_4\.pt: expected a checkpoint"):
        resumable(tmp_path, str(tmp_path / "resume_checkpoint_4.pt"), epochs=5, **QUICK)


@pytest.mark.parametrize("before, expected", [(64.0, 64.0), (None, 2.0)])
def test_the_scaler_of_mixed_precision_goes_on(tmp_path, before, expected):
    """Also where the training so far had none."""
    first = None if before is None else torch.amp.GradScaler("cpu", init_scale=before)
    resumable(tmp_path, "", epochs=2, stop=1, scaler=first, **QUICK)
    second = torch.amp.GradScaler("cpu", init_scale=2.0)
    resumable(tmp_path, "auto", epochs=2, scaler=second, **QUICK)
    assert second.get_scale() == expected


def test_not_a_number_stops_with_terms_and_files():
    trainer, network, _ = make()
    with torch.no_grad():
        network.backbone.final_conv.bias.fill_(float("nan"))
    with pytest.raises(InputError, match=r"iteration 1 \(.*loss_s nan.*slice\d"):
        trainer.run()


def test_weights_that_a_last_step_has_spoilt_are_not_saved(tmp_path):
    """The loss was finite, and no step follows that would tell."""
    trainer, network, _ = make(epochs=2, **QUICK)

    def spoil(engine):
        if engine.state.iteration == 4:
            network.backbone.final_conv.bias.grad.fill_(float("nan"))

    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, spoil)
    ResumeCheckpoint(str(tmp_path), {"network": network}).attach(trainer)
    with pytest.raises(InputError, match="weights are not finite after iteration 4, and are not saved"):
        trainer.run()
    assert [path.name for path in tmp_path.iterdir()] == ["resume_checkpoint_1.pt"]


@pytest.mark.parametrize("images", ["zero", "constant", "as ever"])
@pytest.mark.parametrize("labels", ["background", "one class", "as ever"])
def test_poor_batches_train_on(images, labels):
    """Black or constant images, no foreground, classes absent from every label, nothing confident: finite steps."""
    for sure in (0.0, 1.1):  # everything passes the threshold, or nothing
        trainer, network, _ = make(sure=sure, fusion="sfm")
        for loader in (trainer.data_loader.labeled, trainer.data_loader.unlabeled):
            slices = loader.dataset
            if images != "as ever":
                slices.images.fill_(0.0 if images == "zero" else 0.7)
            if slices.labels is not None and labels != "as ever":
                slices.labels.fill_(0 if labels == "background" else 2)
        trainer.run()
        assert all(math.isfinite(v) for v in trainer.state.scalars.values()), trainer.state.scalars
        assert all(torch.isfinite(v).all() for v in network.state_dict().values())
        assert trainer.state.scalars["mask_u"] == (1.0 if sure == 0.0 else 0.0)


def test_a_loss_that_names_no_streams_is_refused():
    with pytest.raises(
        InputError, match="loss: expected SemSimLoss or a class derived from it, received DiceCELoss; see"
    ):
        SemSimTrainer("cpu", 1, None, None, None, DiceCELoss())


def test_similarity_terms_need_a_fusion():
    with pytest.raises(InputError, match=r"lambda_intra.*fixmatch\.yaml"):
        make(fusion="none")


@pytest.mark.parametrize("use_unlabeled", [False, True])
def test_a_network_from_images_to_logits_trains_as_ours(use_unlabeled):
    """FixMatch and labelled slices alone with the bare U-Net: the same weights as with the one that knows streams."""
    loss = NO_SEMI | ({"lambda_u": 0.5} if use_unlabeled else {})
    trained = []
    for plain in (False, True):
        trainer, network, _ = make(fusion="none", loss=loss, use_unlabeled=use_unlabeled, plain=plain)
        trainer.run()
        trained.append({name.removeprefix("backbone."): value for name, value in state(network).items()})
    assert equal(*trained) and all(v.isfinite().all() for v in trained[0].values())


@pytest.mark.parametrize("batch_norm", ["exclusive", "evaluation"])
def test_pseudo_labels_are_made_without_the_dropout_of_a_network(batch_norm):
    """The student drops what it likes; whatever the batch norm, the same images have the same pseudo-labels."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(VNet(spatial_dims=2, out_channels=4), torch.nn.Dropout(0.5)).train()
    teacher = Teacher(network, batch_norm=batch_norm).network
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad(), frozen_statistics(teacher):
        first, again = teacher(image), teacher(image)
        assert torch.equal(first, again) and not torch.equal(network(image), network(image))


@pytest.mark.parametrize("loss", [{}, NO_SEMI | {"lambda_u": 1.0, "perturb": ["strong_1"]}])
def test_a_network_from_images_to_logits_has_nothing_to_look_inside(loss):
    with pytest.raises(InputError, match=r"network_def: UNet turns.*fixmatch\.yaml.*HOWTO"):
        make(fusion="none", loss=loss, plain=True)


@pytest.mark.parametrize("wrong, received", [(lambda x: [x], "a list"), (lambda x: x[:, :2], r"\(4, 2, 32, 32\)")])
def test_other_outputs_than_logits_are_named(wrong, received):
    trainer, network, _ = make(fusion="none", loss=NO_SEMI, use_unlabeled=False, plain=True)
    network.register_forward_hook(lambda module, given, output: wrong(output))
    with pytest.raises(InputError, match=rf"network_def: expected logits \(4, 4, 32, 32\).*received {received}"):
        trainer.run()


@pytest.mark.parametrize("fusion", ["sfm", "conv"])
def test_mixed_precision_is_the_same_training_up_to_rounding(fusion, caplog):
    """Every term of the first steps, which the network has hardly begun to change, and weights that stay float32."""
    caplog.set_level("INFO")
    runs = {}
    for amp in (False, True):
        trainer, network, _ = make(fusion=fusion, amp=amp)
        trainer.run()
        runs[amp] = trainer.state.scalars
        assert all(p.dtype == torch.float32 for p in network.parameters())
        assert not trainer.precision.scaled and trainer.scaler is None
    assert "Computing in bfloat16 (" in caplog.text and "Computing in float32 (amp is False)" in caplog.text
    for name in ("loss", "loss_s", "loss_u", "loss_intra", "loss_cross", "agreement"):
        assert runs[True][name] == pytest.approx(runs[False][name], rel=0.03), name
    assert runs[True]["loss"] != runs[False]["loss"]


def test_a_training_goes_on_in_another_precision_and_says_so(tmp_path, caplog):
    resumable(tmp_path, "", epochs=4, stop=2, amp=True, **QUICK)
    trainer, _, _ = resumable(tmp_path, "auto", epochs=4, amp=False, **QUICK)
    assert "This training has used bfloat16 so far; it continues in float32 (amp is False)." in caplog.text
    assert trainer.state.epoch == 4 and math.isfinite(trainer.state.scalars["loss"])
    caplog.clear()
    resumable(tmp_path, "auto", epochs=5, amp=False, **QUICK)
    assert "This training has used" not in caplog.text


def test_learning_makes_the_loss_fall():
    trainer, _, optimizer = make(fusion="none", epochs=12, loss=NO_SEMI, use_unlabeled=False)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    losses = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.scalars["loss_s"]))
    trainer.run()
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])
