"""The tasks by name: what is learned from labels, and how it is scored (`trainers.tasks.task.Task`)."""

from __future__ import annotations

from collections.abc import Mapping

from trainers.tasks.classification import CLASSIFICATION
from trainers.tasks.task import Task

TASKS: Mapping[str, Task] = {task.name: task for task in (CLASSIFICATION,)}
