"""The tasks by name. A task (`trainers.tasks.task.Task`) defines the targets, the loss and the metrics."""

from __future__ import annotations

from collections.abc import Mapping

from trainers.tasks.classification import CLASSIFICATION
from trainers.tasks.detection import DETECTION, INSTANCES
from trainers.tasks.keypoints import KEYPOINTS
from trainers.tasks.saliency import SALIENCY
from trainers.tasks.segmentation import SEGMENTATION
from trainers.tasks.task import Task

ALL = (CLASSIFICATION, SEGMENTATION, SALIENCY, KEYPOINTS, DETECTION, INSTANCES)
TASKS: Mapping[str, Task] = {task.name: task for task in ALL}
