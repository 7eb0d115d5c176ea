"""The network: sizes, parameters, streams, and what inference and export see of it."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import BasicUNet
from scripts.method.fusion import attention, departition, partition
from scripts.method.memory_format import CHANNELS_LAST, dense_gradient, parts
from scripts.method.network import FEATURES, SegmentationNet, SemSimNet, Streams
from scripts.training.trainer import twin

ALL = Streams(decode=("labeled", "strong_1"), fuse=("labeled", "strong_1", "strong_2"))


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_the_papers():
    assert count(SemSimNet().backbone) == 1_815_028
    assert count(SemSimNet()) == pytest.approx(2.60e6, rel=0.10)
    assert count(SemSimNet(fusion="conv")) == pytest.approx(1.81e6, rel=0.02)
    assert count(SemSimNet(fusion="none")) == 1_815_028


@pytest.mark.parametrize("fusion", ["sfm", "conv"])
@pytest.mark.parametrize(
    "dims, size", [(2, (64, 64)), (2, (49, 70)), (2, (33, 100)), (2, (32, 16)), (3, (32, 32, 32)), (3, (20, 35, 17))]
)
def test_any_size_in_2d_and_3d(fusion, dims, size):
    torch.manual_seed(0)
    features = (4, 8, 8, 16, 16, 4) if dims == 3 else (16, 32, 64, 128, 256, 16)
    network = SemSimNet(dims, 2, 3, features, fusion=fusion, fusion_channels=16)
    images = {name: torch.rand(2, 2, *size) for name in ("labeled", "strong_1", "strong_2")}
    output = network(images, ALL)
    assert set(output.logits) == {"labeled", "strong_1"} and set(output.features) == set(images)
    assert all(v.shape == (2, 3, *size) for v in output.logits.values())
    assert all(v.shape == (2, 16, *(n // 4 for n in size)) and v.min() >= 0 for v in output.features.values())
    (sum(v.sum() for v in output.logits.values()) + sum(v.square().sum() for v in output.features.values())).backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dims, size", [(2, (64, 48)), (2, (49, 70)), (3, (16, 35, 17))])
def test_the_backbone_is_monais_u_net(dims, size):
    """Logits, gradients and the names of its weights, where sides divide by 16 and where they do not."""
    torch.manual_seed(0)
    features = (4, 8, 8, 16, 16, 4) if dims == 3 else FEATURES
    theirs = BasicUNet(dims, 1, 3, features, norm="batch", upsample="nontrainable").double()
    ours = SegmentationNet(dims, 1, 3, features).double()
    ours.backbone.load_state_dict(theirs.state_dict())
    image = torch.rand(2, 1, *size, dtype=torch.float64)
    results = [network(image) for network in (theirs, ours)]
    torch.testing.assert_close(*results)
    for result in results:
        result.square().mean().backward()
    for (name, expected), found in zip(theirs.named_parameters(), ours.backbone.parameters()):
        torch.testing.assert_close(found.grad, expected.grad, msg=name)


@pytest.mark.parametrize("size", [(6, 5), (4, 3, 5)])
def test_parts_are_those_of_a_split_with_a_gradient_that_has_its_channels_last(size):
    x = torch.rand(5, 3, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: parts(x, [2, 2, 1])[::2], x)
    assert torch.autograd.gradcheck(lambda x: torch.cat([x, dense_gradient(2 * x)], dim=1), x)
    for pieces in (parts(x, [2, 2, 1]), x.split([2, 2, 1])):
        (pieces[0].square().sum() + 3 * pieces[2].sum()).backward()
    torch.testing.assert_close(x.grad[2:4], torch.zeros_like(x[2:4]))
    torch.testing.assert_close(x.grad[4], torch.full_like(x[4], 6.0))
    seen = []
    y = x * 1
    y.register_hook(lambda g: seen.append(g.is_contiguous(memory_format=CHANNELS_LAST[len(size)])))
    parts(y, [4, 1])[0].sum().backward()
    y = x * 1
    y.register_hook(lambda g: seen.append(g.is_contiguous(memory_format=CHANNELS_LAST[len(size)])))
    torch.cat([x, dense_gradient(y)], dim=1).square().sum().backward()
    assert seen == [True, True]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 0.02)])
def test_attention_of_short_windows_is_attention(dtype, tolerance):
    torch.manual_seed(0)
    q, k, v, g = (torch.randn(3, 2, 21, 8, dtype=torch.float64) for _ in range(4))
    results = []
    for function, kind in ((torch.nn.functional.scaled_dot_product_attention, torch.float64), (attention, dtype)):
        inputs = [x.to(kind).requires_grad_() for x in (q, k, v)]
        out = function(*inputs)
        results.append([out, *torch.autograd.grad(out, inputs, g.to(kind))])
    for expected, found in zip(*results):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("size", [(8, 16), (5, 9), (3, 4, 5)])
def test_partition_is_inverted_and_windows_are_contiguous(size):
    dims = len(size)
    x = torch.arange(2 * 3 * torch.tensor(size).prod()).reshape(2, 3, *size).float()
    grid, windows = [-(-n // 4) for n in size], [4] * dims
    tokens = partition(x, grid, windows, mode="replicate")
    assert tokens.shape == (2, torch.tensor(grid).prod(), 4**dims, 3)
    assert torch.equal(departition(tokens, grid, windows, size), x)
    if size == (8, 16):  # the second window in reading order is rows 0-3, columns 4-7
        assert torch.equal(tokens[0, 1, :, 0], x[0, 0, :4, 4:8].flatten())


def test_streams_share_one_batch_norm_pass():
    """In training mode the forward of several streams equals the forward of their concatenation."""
    torch.manual_seed(0)
    network = SemSimNet(fusion="none").train()
    a, b = torch.rand(2, 1, 32, 32), torch.rand(3, 1, 32, 32) * 5
    both = network({"labeled": a, "strong_1": b}, Streams(decode=("labeled", "strong_1"))).logits
    joint = network(torch.cat([a, b]))
    torch.testing.assert_close(torch.cat([both["labeled"], both["strong_1"]]), joint)
    assert not torch.allclose(network(a), both["labeled"])


def test_dropout_meets_perturbed_streams_only():
    torch.manual_seed(0)
    network = SemSimNet(fusion="conv").train()
    images = {name: torch.rand(2, 1, 32, 32) for name in ("labeled", "strong_1", "strong_2")}
    calm, shaken = network(images, ALL), network(images, Streams(ALL.decode, ALL.fuse, ("strong_1",)))
    for name in images:
        torch.testing.assert_close(calm.features[name], shaken.features[name])
    assert not torch.allclose(calm.logits["strong_1"], shaken.logits["strong_1"], atol=1e-3)


def test_one_file_serves_training_and_strict_inference(tmp_path):
    torch.manual_seed(0)
    trained = SemSimNet().eval()
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    plain = SegmentationNet().eval()
    plain.load_state_dict(state, strict=True)
    assert any(k.startswith("fusion.") for k in state), "loading does not eat the caller's state"
    SemSimNet().load_state_dict(state, strict=True)
    image = torch.rand(2, 1, 48, 64)
    torch.testing.assert_close(plain(image), trained(image), rtol=0, atol=1e-6)
    assert not any("fusion" in name for name, _ in plain.named_parameters())

    with pytest.raises(RuntimeError, match=r"stranger\.weight"):
        SegmentationNet().load_state_dict({**state, "stranger.weight": torch.zeros(1)}, strict=True)
    lost = dict(state)
    del lost["backbone.final_conv.bias"]
    with pytest.raises(RuntimeError, match=r"final_conv\.bias"):
        SegmentationNet().load_state_dict(lost, strict=True)
    with pytest.raises(RuntimeError, match=r"fusion\."):
        SemSimNet(fusion="conv").load_state_dict(state, strict=True)


def test_plain_call_never_touches_the_fusion():
    network = SemSimNet().eval()
    network.fusion.forward = None  # would raise if called
    assert network(torch.rand(1, 1, 32, 32)).shape == (1, 4, 32, 32)


def test_twin_shares_every_tensor_and_keeps_its_own_mode():
    torch.manual_seed(0)
    network = SemSimNet(fusion="conv").train()
    weak = twin(network).eval()
    assert network.training and not weak.training and network.backbone.conv_0.training
    for (name, p), q in zip(network.state_dict(keep_vars=True).items(), weak.state_dict(keep_vars=True).values()):
        assert p is q, name
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    image = torch.rand(2, 1, 32, 32)
    network(image).square().mean().backward()
    optimizer.step()  # moves parameters and, in the forward, running statistics
    network.load_state_dict({k: v * 1.01 if v.is_floating_point() else v for k, v in network.state_dict().items()})
    network.eval()
    torch.testing.assert_close(weak(image), network(image), rtol=0, atol=0)


def test_refusals():
    for kind in ("magic", "sfm_light"):  # the latter of an earlier version
        with pytest.raises(ValueError, match=f"expected sfm, conv or none, received '{kind}'; weights of another kind"):
            SemSimNet(fusion=kind)
    with pytest.raises(ValueError, match="fusion: none"):
        SemSimNet(fusion="none")({"labeled": torch.rand(2, 1, 32, 32)}, Streams(fuse=("labeled",)))
