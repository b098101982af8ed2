"""ResNet encoders: counts, structure, dilation."""

from __future__ import annotations

import pytest
import torch

from bigmap.models.layers import count_parameters, fold_norms
from bigmap.models.networks.resnet import STAGES, ResNet
from tests.unit.models.functional_cases import Weights, unsettle


@pytest.mark.parametrize(
    ("depth", "count"), [(18, 11_176_512), (34, 21_284_672), (101, 42_500_160)]
)
def test_parameters_are_those_of_torchvision_without_its_classifier(depth, count):
    with torch.device("meta"):
        assert count_parameters(ResNet(depth, 3)) == count


@pytest.mark.parametrize("output_stride", [16, 32])
@pytest.mark.parametrize("depth", list(STAGES))
def test_features_agree_with_plain_functions(depth, output_stride):
    torch.manual_seed(0)
    network = unsettle(ResNet(depth, 4, width=4, output_stride=output_stride))
    image = torch.randn(2, 4, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        found = network(image)
        expected = Weights(network.state_dict()).resnet(
            "", image, blocks=STAGES[depth], output_stride=output_stride
        )
    assert [64 // x.shape[-2] for x in found] == [2, 4, 8, 16, output_stride]
    assert tuple(x.shape[1] for x in found) == network.channels
    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max()
        torch.testing.assert_close(one / scale, other / scale, rtol=1e-8, atol=1e-8)


def test_folding_changes_nothing_but_rounding():
    torch.manual_seed(0)
    network = unsettle(ResNet(18, 4, width=8))
    image = torch.randn(1, 4, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        before = network(image)[-1]
        fold_norms(network)
        after = network(image)[-1]
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    torch.testing.assert_close(after, before, rtol=1e-8, atol=1e-8 * before.abs().max().item())


@pytest.mark.parametrize(
    ("depth", "stride", "message"), [(50, 32, "depth 50"), (18, 8, "output_stride 8")]
)
def test_wrong_choices_are_named(depth, stride, message):
    with pytest.raises(ValueError, match=message):
        ResNet(depth, 3, output_stride=stride)
