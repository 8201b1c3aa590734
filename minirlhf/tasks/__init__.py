"""Embedded tasks that need no download, and tasks made from a user's rows."""

from minirlhf.lazy import lazy
from minirlhf.tasks.task import Task, embedded_task

# names of leaves
LEAVES = {"minirlhf.tasks.user_rows": "task_from_rows"}
__getattr__, __dir__ = lazy(__name__, LEAVES)
