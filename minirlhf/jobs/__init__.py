"""The parts of a program: settings, folder, rows, and the stages of RLHF before the program's own stage."""

from minirlhf.jobs.job import Job
from minirlhf.jobs.settings import JobConfig, PipelineConfig, RLJobConfig
from minirlhf.jobs.stage import PolicyStage, Stage, open_stage
