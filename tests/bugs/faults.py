"""All faults of the museum: name -> Fault."""

from .fault import Fault
from .given import GIVEN
from .sampled import SAMPLED

FAULTS: dict[str, Fault] = SAMPLED | GIVEN
