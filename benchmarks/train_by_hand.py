"""What one writes today to train SPInet: python train_by_hand.py chips.npz steps."""

import json
import os
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from plain_spinet import PlainSPInet

BATCH_CHIPS = 8
CHANNELS, UNITS = 16, 4


def main(path, steps):
    """Train on chips in memory; print how many a second."""
    stored = np.load(path)
    images = torch.from_numpy(stored["images"].astype(np.float32) * np.float32(1e-4) - 0.1)
    labels, dates = torch.from_numpy(stored["labels"]), stored["dates"]
    network = PlainSPInet(images.shape[2], 1, CHANNELS, UNITS).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    generator = np.random.default_rng(0)
    order = np.concatenate([generator.permutation(len(images)) for _ in range(steps)])
    start = None
    for step in range(steps):
        if step == 1:  # the first one allocates
            start = time.perf_counter()
        optimiser.zero_grad()
        for chip in order[step * BATCH_CHIPS : (step + 1) * BATCH_CHIPS]:
            logits = network(images[chip, : dates[chip]])[0]
            known = labels[chip] != 255
            loss = F.binary_cross_entropy_with_logits(logits[known], labels[chip][known].float())
            (loss / BATCH_CHIPS).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    print(json.dumps({"chips_per_s": BATCH_CHIPS * (steps - 1) / (time.perf_counter() - start)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
