"""HighRes-net, the dual network and D-DBPN + SegNet as one would write them from their papers.

As with ``plain_spinet.py`` they are yardsticks of speed: plain eager PyTorch, nothing folded, and
nothing taken from bigmap but the weights. Sides of images are multiples of what the networks halve.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn


def conv_norm(fan_in, fan_out, kernel=3, stride=1, dilation=1, *, bias=False):
    """Return a convolution and its BatchNorm."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(fan_in, fan_out, kernel, stride, padding, dilation, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(fan_out))


def conv_norm_relu(*args, **kwargs):
    """Return a convolution, its BatchNorm and a ReLU."""
    return conv_norm(*args, **kwargs).append(nn.ReLU(inplace=True))


class Standardised(nn.Module):
    """Has the mean and the standard deviation of each band."""

    def __init__(self, bands):
        super().__init__()
        self.register_buffer("mean", torch.zeros(bands, 1, 1))
        self.register_buffer("std", torch.ones(bands, 1, 1))

    def standardise(self, reflectance):
        """Standardise reflectance (..., band, y, x)."""
        return (reflectance - self.mean) / self.std


class ResidualBlock(nn.Module):
    """Two convolutions with PReLU beside an identity."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.PReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.PReLU(),
        )

    def forward(self, x):
        return x + self.body(x)


class PlainHighResNet(Standardised):
    """Views (date, band, y, x) in reflectance to an image (1, band, 2 y, 2 x)."""

    def __init__(self, bands, outputs, width):
        super().__init__(bands)
        self.encoder = nn.Sequential(
            nn.Conv2d(2 * bands, width, 3, padding=1),
            nn.PReLU(),
            ResidualBlock(width),
            ResidualBlock(width),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.fusion = nn.Sequential(
            ResidualBlock(2 * width), nn.Conv2d(2 * width, width, 3, padding=1), nn.PReLU()
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1),
            nn.PReLU(),
            nn.Conv2d(width, outputs, 1),
        )

    def forward(self, views):
        views = self.standardise(views)
        reference = views[:9].median(dim=0, keepdim=True).values
        x = self.encoder(torch.cat([views, reference.expand_as(views)], dim=1))
        while len(x) > 1:  # the first half meets the second, backwards; what has no partner stays
            half = 1 << (len(x) - 1).bit_length() - 1
            alone = 2 * half - len(x)
            first, second = x[alone:half], x[half:].flip(0)
            fused = first + self.fusion(torch.cat([first, second], dim=1))
            x = torch.cat([x[:alone], fused])
        return torch.sigmoid(self.decoder(x))


class Bottleneck(nn.Module):
    """ResNet's block of three convolutions."""

    def __init__(self, fan_in, width, stride):
        super().__init__()
        fan_out = 4 * width
        self.conv1 = conv_norm_relu(fan_in, width, 1)
        self.conv2 = conv_norm_relu(width, width, 3, stride)
        self.conv3 = conv_norm(width, fan_out, 1)
        self.downsample = nn.Identity()
        if fan_in != fan_out or stride > 1:
            self.downsample = conv_norm(fan_in, fan_out, 1, stride)

    def forward(self, x):
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.downsample(x), inplace=True)


class ResNet101(nn.Module):
    """Features at 1/2, 1/4 and 1/32 of the resolution."""

    def __init__(self, bands, width):
        super().__init__()
        self.conv1 = conv_norm_relu(bands, width, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        fan_in = width
        for number, blocks in enumerate((3, 4, 23, 3), 1):
            stage = nn.Sequential()
            for block in range(blocks):
                stride = 2 if number > 1 and block == 0 else 1
                stage.append(Bottleneck(fan_in, width, stride))
                fan_in = 4 * width
            self.add_module(f"layer{number}", stage)
            width *= 2

    def forward(self, x):
        half = self.conv1(x)
        quarter = self.layer1(self.pool(half))
        return half, quarter, self.layer4(self.layer3(self.layer2(quarter)))


class ASPP(nn.Module):
    """Dilated convolutions and the mean of the image, joined."""

    def __init__(self, fan_in, fan_out):
        super().__init__()
        self.levels = nn.ModuleList([conv_norm_relu(fan_in, fan_out, 1)])
        self.levels.extend(conv_norm_relu(fan_in, fan_out, dilation=rate) for rate in (3, 6, 9))
        self.pooled = nn.Conv2d(fan_in, fan_out, 1)
        self.project = conv_norm_relu(5 * fan_out, fan_out, 1)

    def forward(self, x):
        pooled = F.relu(self.pooled(F.adaptive_avg_pool2d(x, 1)))
        levels = [level(x) for level in self.levels]
        return self.project(torch.cat([*levels, pooled.expand_as(levels[0])], dim=1))


def shuffle_up(fan_in, fan_out):
    """Return what doubles the resolution."""
    return nn.Sequential(conv_norm_relu(fan_in, 4 * fan_out), nn.PixelShuffle(2))


class PlainDual(Standardised):
    """The branch of classes, v4: image (1, band, y, x) to logits (1, class, 2 y, 2 x)."""

    def __init__(self, bands, outputs, backbone, pyramid, width):
        super().__init__(bands)
        self.encoder = ResNet101(bands, backbone)
        self.pyramid = ASPP(32 * backbone, pyramid)
        self.to_quarter = nn.Sequential(
            shuffle_up(pyramid, width), shuffle_up(width, width), shuffle_up(width, width)
        )
        self.quarter_skip = conv_norm_relu(4 * backbone, width * 3 // 4, 1)
        self.quarter_merge = conv_norm_relu(width + width * 3 // 4, width)
        self.to_half = shuffle_up(width, width)
        self.half_skip = conv_norm_relu(backbone, width // 2, 1)
        self.half_merge = conv_norm_relu(width + width // 2, width)
        self.to_whole = shuffle_up(width, width)
        self.head = conv_norm_relu(width, width)
        self.finish = nn.Sequential(conv_norm_relu(width, width), shuffle_up(width, width))
        self.spread = nn.Conv2d(bands, 16, 1)
        self.last = nn.Conv2d(width + 16, outputs, 3, padding=1)

    def forward(self, image):
        image = self.standardise(image)
        half, quarter, deep = self.encoder(image)
        x = self.to_quarter(self.pyramid(deep))
        x = self.quarter_merge(torch.cat([x, self.quarter_skip(quarter)], dim=1))
        x = self.half_merge(torch.cat([self.to_half(x), self.half_skip(half)], dim=1))
        x = self.finish(self.head(self.to_whole(x)))
        fine = F.interpolate(image, scale_factor=2, mode="bicubic")
        return self.last(torch.cat([x, self.spread(fine)], dim=1))


class Projection(nn.Module):
    """Up or down by four, and again by what projecting it back misses."""

    def __init__(self, sources, width, *, up):
        super().__init__()

        def step(kind):
            return nn.Sequential(kind(width, width, 8, 4, 2), nn.PReLU())

        there, back = nn.ConvTranspose2d, nn.Conv2d
        if not up:
            there, back = back, there
        self.fuse = nn.Sequential()
        if sources > 1:
            self.fuse = nn.Sequential(nn.Conv2d(sources * width, width, 1), nn.PReLU())
        self.project, self.project_back, self.correct = step(there), step(back), step(there)

    def forward(self, x):
        x = self.fuse(x)
        projected = self.project(x)
        return projected + self.correct(self.project_back(projected) - x)


class DDBPN(nn.Module):
    """Image (1, band, y, x) to one four times finer."""

    def __init__(self, bands, features, width, stages):
        super().__init__()
        self.head = nn.Sequential(
            nn.Conv2d(bands, features, 3, padding=1),
            nn.PReLU(),
            nn.Conv2d(features, width, 1),
            nn.PReLU(),
        )
        self.ups = nn.ModuleList(Projection(max(1, n), width, up=True) for n in range(stages))
        self.downs = nn.ModuleList(Projection(n, width, up=False) for n in range(1, stages))
        self.tail = nn.Conv2d(stages * width, bands, 3, padding=1)

    def forward(self, x):
        fine, coarse = [self.ups[0](self.head(x))], []  # the latest come first
        for down, up in zip(self.downs, self.ups[1:], strict=True):
            coarse.insert(0, down(torch.cat(fine, dim=1)))
            fine.insert(0, up(torch.cat(coarse, dim=1)))
        return self.tail(torch.cat(fine, dim=1))


class SegNet(nn.Module):
    """VGG16 with BatchNorm and its mirror, joined by the places of the maxima."""

    def __init__(self, bands, classes, levels):
        super().__init__()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        finer = [bands, *(width for width, _ in levels)]
        for number, (width, depth) in enumerate(levels):
            outer = [finer[number], *[width] * depth]
            self.encoder.append(chain(outer))
            outer[0] = outer[0] if number else classes
            self.decoder.append(chain(outer[::-1]))
        self.decoder[0].pop(-1)  # the logits are not rectified

    def forward(self, x):
        places = []
        for level in self.encoder:
            x, place = F.max_pool2d(level(x), 2, return_indices=True)
            places.append(place)
        for level in reversed(self.decoder):
            x = level(F.max_unpool2d(x, places.pop(), 2))
        return x


def chain(widths):
    """Return convolutions with BatchNorm and ReLU between these widths."""
    layers = nn.Sequential()
    for fan_in, fan_out in itertools.pairwise(widths):
        layers.append(conv_norm(fan_in, fan_out, bias=True)).append(nn.ReLU(inplace=True))
    return layers


class PlainDbpnSegnet(Standardised):
    """Image (1, band, y, x) to logits (1, class, 4 y, 4 x)."""

    def __init__(self, bands, classes, resolver, levels):
        super().__init__(bands)
        self.resolver = DDBPN(bands, *resolver)
        self.segmenter = SegNet(bands, classes, levels)

    def forward(self, image):
        return self.segmenter(self.resolver(self.standardise(image)))


def build_highres_net(state):
    """Build HighRes-net for the weights."""
    outputs, width = state["decoder.2.weight"].shape[:2]
    return PlainHighResNet(len(state["mean"]), outputs, width)


def build_dual(state):
    """Build the dual network for the weights."""
    backbone, bands = state["encoder.conv1.0.weight"].shape[:2]
    outputs, pyramid = len(state["last.weight"]), len(state["pyramid.pooled.weight"])
    return PlainDual(bands, outputs, backbone, pyramid, len(state["head.0.weight"]))


def build_dbpn_segnet(state):
    """Build D-DBPN and SegNet for the weights."""
    features, bands = state["resolver.head.0.weight"].shape[:2]
    width = len(state["resolver.head.2.weight"])
    stages = state["resolver.tail.weight"].shape[1] // width
    depths = {}
    for key, value in state.items():
        if key.startswith("segmenter.encoder.") and key.endswith("0.weight"):
            depths.setdefault(int(key.split(".")[2]), []).append(len(value))
    levels = [(widths[0], len(widths)) for _, widths in sorted(depths.items())]
    classes = len(state[f"segmenter.decoder.0.{2 * levels[0][1] - 2}.0.weight"])
    return PlainDbpnSegnet(bands, classes, (features, width, stages), levels)


CONVOLUTIONS = ((".conv.", ".0."), (".norm.", ".1."))
NETWORKS = {
    "highres-net": (build_highres_net, ()),
    "dual": (
        build_dual,
        (
            *CONVOLUTIONS,
            (".expand.", ".0."),
            ("segmentation_head.", ""),
            ("segmentation.", ""),
        ),
    ),
    "dbpn-segnet": (build_dbpn_segnet, CONVOLUTIONS),
}
"""What builds each network, and parts of names in bigmap's weights and here."""
TRAINING_ONLY = ("image.", "image_head.", "match.")
"""The dual network's branch of images."""


def load(name, state):
    """Build a network with bigmap's weights."""
    build, names = NETWORKS[name]
    renamed = {}
    for key, value in state.items():
        own = key.removeprefix("statistics.").removeprefix("network.")
        if own.startswith(TRAINING_ONLY):
            continue
        for old, new in names:
            own = own.replace(old, new)
        renamed[own] = value[:, None, None] if own in ("mean", "std") else value
    network = build(renamed)
    network.load_state_dict(renamed)
    return network.eval()
