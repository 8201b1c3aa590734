"""Every test runs on one thread: tiny tensors gain nothing from a second, and neighbours stay out of the timing."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
