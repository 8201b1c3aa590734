"""Embedded tasks that need no download, and tasks made from a user's rows."""

from minirlhf.tasks.task import Task, embedded_task, task_from_rows
