"""Programs: settings, folder, rows, and the stages of RLHF that come before a program's own."""

from minirlhf.jobs.job import Job
from minirlhf.jobs.settings import JobConfig, PipelineConfig, RLJobConfig
from minirlhf.jobs.stage import PolicyStage, Stage, open_stage
