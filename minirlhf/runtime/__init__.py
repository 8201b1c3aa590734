"""Device, precision, processes and random numbers: the only code that depends on the machine."""

from minirlhf.runtime.device import resolve_device, resolve_precision, session
from minirlhf.runtime.distributed import all_sum, backward, is_main, wrap
from minirlhf.runtime.randomness import keyed_uniforms, permutation, seed_everything
