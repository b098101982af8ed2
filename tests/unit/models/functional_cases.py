"""Plain functions of state dictionaries, against which networks are compared."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def unsettle(network, seed=0):
    """Give normalisations random statistics and scales, so that mistakes in them show; double."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_var", "norm.weight")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return network.double().eval()


class Weights:
    """Convolutions by the names of a state dictionary."""

    def __init__(self, state):
        self.state = state

    def plain(self, name, x, padding=0):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1, padding)

    def norm(self, name, x, stride=1, dilation=1):
        weight = self.state[f"{name}.conv.weight"]
        assert f"{name}.conv.bias" not in self.state
        padding = dilation * (weight.shape[-1] // 2)
        x = F.conv2d(x, weight, None, stride, padding, dilation)
        part = [
            self.state[f"{name}.norm.{key}"]
            for key in ("running_mean", "running_var", "weight", "bias")
        ]
        mean, variance, scale, shift = (each[:, None, None] for each in part)
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def rectified(self, name, x, **options):
        return self.norm(name, x, **options).clamp(min=0)

    def has(self, name):
        return any(key.startswith(f"{name}.") for key in self.state)

    def residual(self, name, x, stride=1, first=1, second=1):
        """Run a block of either kind; dilations of the strided convolution and the one after."""
        shortcut = (
            self.norm(f"{name}.downsample", x, stride=stride)
            if self.has(f"{name}.downsample")
            else x
        )
        if self.has(f"{name}.conv3"):
            y = self.rectified(f"{name}.conv1", x)
            y = self.rectified(f"{name}.conv2", y, stride=stride, dilation=first)
            y = self.norm(f"{name}.conv3", y)
        else:
            y = self.rectified(f"{name}.conv1", x, stride=stride, dilation=first)
            y = self.norm(f"{name}.conv2", y, dilation=second)
        return (y + shortcut).clamp(min=0)

    def resnet(self, name, image, *, blocks, output_stride):
        x = self.rectified(f"{name}conv1", image, stride=2)
        found = [x]
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage, count in enumerate(blocks, start=1):
            for index in range(count):
                stride = 2 if index == 0 and stage > 1 else 1
                first = second = 1
                if stage == 4 and output_stride == 16:
                    stride, second = 1, 2
                    first = 1 if index == 0 else 2
                x = self.residual(f"{name}layer{stage}.{index}", x, stride, first, second)
            found.append(x)
        return found

    def pyramid(self, name, x, rates):
        levels = [self.rectified(f"{name}.levels.0", x)]
        for index, rate in enumerate(rates, start=1):
            levels.append(self.rectified(f"{name}.levels.{index}", x, dilation=rate))
        pooled = self.plain(f"{name}.pooled", F.adaptive_avg_pool2d(x, 1)).clamp(min=0)
        levels.append(F.interpolate(pooled, size=x.shape[-2:]))
        return self.rectified(f"{name}.project", torch.cat(levels, dim=1))
