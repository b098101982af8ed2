"""SPInet as one would write it in an afternoon from its paper: plain PyTorch, nothing folded.

It is the yardstick of speed, so it takes nothing from bigmap and stays as it is. Names of tensors
are given by :func:`load`, from the weights of bigmap's own.
"""

import torch
import torch.nn.functional as F
from torch import nn

SCALES = 4


class Block(nn.Module):
    """Convolution, BatchNorm, leaky ReLU, + attention over the dates of a pixel, BatchNorm."""

    def __init__(self, fan_in, channels, *, activate=False):
        super().__init__()
        self.conv = nn.Conv2d(fan_in, channels, 3, padding=1)
        self.norm_in = nn.BatchNorm2d(channels)
        self.attention = nn.MultiheadAttention(channels, 1, batch_first=True)
        self.norm_out = nn.BatchNorm2d(channels)
        self.activate = activate

    def forward(self, x):
        """Turn (date, channel, y, x) into the same with other channels."""
        x = F.leaky_relu(self.norm_in(self.conv(x)))
        dates, channels, height, width = x.shape
        tokens = x.permute(2, 3, 0, 1).reshape(height * width, dates, channels)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        mixed = mixed.reshape(height, width, dates, channels).permute(2, 3, 0, 1)
        x = self.norm_out(x + mixed)
        return F.leaky_relu(x) if self.activate else x


class Unit(nn.Module):
    """Two blocks with a gate for each channel, on a skip."""

    def __init__(self, channels):
        super().__init__()
        self.first = Block(channels, channels, activate=True)
        self.second = Block(channels, channels)
        self.squeeze = nn.Linear(channels, channels // 8)
        self.excite = nn.Linear(channels // 8, channels)

    def forward(self, x):
        """Turn (date, channel, y, x) into the same."""
        change = self.second(self.first(x))
        gate = torch.sigmoid(self.excite(F.leaky_relu(self.squeeze(change.mean(dim=(0, 2, 3))))))
        return x + gate[:, None, None] * change


class Registration(nn.Module):
    """Each date is filtered with a kernel of its own."""

    def __init__(self, channels):
        super().__init__()
        self.block = Block(channels, channels)
        self.project = nn.Linear(channels, 25)

    def forward(self, x):
        """Turn (date, channel, y, x) into the same."""
        filters = self.project(F.leaky_relu(self.block(x)).mean(dim=(2, 3))).view(-1, 1, 5, 5)
        swapped = F.conv2d(x.transpose(0, 1), filters, padding=2, groups=len(x))
        return swapped.transpose(0, 1)


class Fusion(nn.Module):
    """Branches at four resolutions, mixed at each, joined at the first."""

    def __init__(self, channels, outputs):
        super().__init__()

        def layer(fan_in, stride):
            conv = nn.Conv2d(fan_in, channels, 3, stride=stride, padding=1)
            return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.LeakyReLU())

        self.branches = nn.ModuleList(layer(channels, 1 if i == 0 else 2) for i in range(SCALES))
        self.mixers = nn.ModuleList(layer(SCALES * channels, 1) for _ in range(SCALES))
        self.project = nn.Conv2d(SCALES * channels, outputs, 1)

    def forward(self, x):
        """Turn (1, channel, y, x) into logits (1, class, y, x)."""
        branches = []
        for branch in self.branches:
            x = branch(x)
            branches.append(x)
        mixed = [
            mixer(torch.cat([resample(b, i - scale) for i, b in enumerate(branches)], dim=1))
            for scale, mixer in enumerate(self.mixers)
        ]
        return self.project(torch.cat([resample(m, i) for i, m in enumerate(mixed)], dim=1))


def resample(x, octaves):
    """Enlarge by two to the power of octaves, or shrink."""
    if octaves > 0:
        return F.interpolate(x, scale_factor=2**octaves, mode="bilinear")
    return F.avg_pool2d(x, 2**-octaves) if octaves < 0 else x


class PlainSPInet(nn.Module):
    """Dates (date, band, y, x) in reflectance to logits (class, 4 y, 4 x)."""

    def __init__(self, bands, outputs, channels, units):
        super().__init__()
        self.register_buffer("mean", torch.zeros(bands, 1, 1))
        self.register_buffer("std", torch.ones(bands, 1, 1))
        self.first = Block(bands, channels)
        self.units = nn.ModuleList(Unit(channels) for _ in range(units))
        self.middle = Block(channels, channels)
        self.registration = Registration(channels)
        self.enlarge = nn.Conv2d(channels, 16 * channels, 3, padding=1)
        self.fusion = Fusion(channels, outputs)

    def forward(self, dates):
        """Segment the dates of one window."""
        skip = self.first((dates - self.mean) / self.std)
        x = skip
        for unit in self.units:
            x = unit(x)
        x = F.leaky_relu(self.middle(x)) + skip
        x = self.registration(x).mean(dim=0, keepdim=True)
        return self.fusion(F.pixel_shuffle(self.enlarge(x), 4))[0]


NAMES = (
    ("statistics.", ""),
    ("network.backbone.", ""),
    ("network.enlarge", "enlarge"),
    ("network.head.", "fusion."),
    ("registration.estimator.", "registration."),
    ("convolution.conv.", "conv."),
    ("convolution.norm.", "norm_in."),
    ("attention.in_proj.", "attention.in_proj_"),
    (".norm.", ".norm_out."),
    (".gate.", "."),
)
"""Parts of names in bigmap's weights, and here."""


def load(state):
    """Build the network of bigmap's weights."""
    channels, bands = state["network.backbone.first.convolution.conv.weight"].shape[:2]
    units = 1 + max(int(key.split(".")[3]) for key in state if ".units." in key)
    outputs = len(state["network.head.project.weight"])
    network = PlainSPInet(bands, outputs, channels, units)
    renamed = {}
    for key, value in state.items():
        if key.startswith("network.head.") and "project" not in key:
            _, _, group, number, part, rest = key.split(".")
            own = f"fusion.{group}.{number}.{0 if part == 'conv' else 1}.{rest}"
        else:
            own = key
            for old, new in NAMES:
                own = own.replace(old, new)
        renamed[own] = value[:, None, None] if own in ("mean", "std") else value
    network.load_state_dict(renamed)
    return network.eval()
