"""The average precision (AP) of key points by their similarity to the truth (OKS), computed by faster-coco-eval."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from res2net.errors import UserError

COCO_SIGMAS = {
    "nose": 0.026,
    "left_eye": 0.025,
    "right_eye": 0.025,
    "left_ear": 0.035,
    "right_ear": 0.035,
    "left_shoulder": 0.079,
    "right_shoulder": 0.079,
    "left_elbow": 0.072,
    "right_elbow": 0.072,
    "left_wrist": 0.062,
    "right_wrist": 0.062,
    "left_hip": 0.107,
    "right_hip": 0.107,
    "left_knee": 0.087,
    "right_knee": 0.087,
    "left_ankle": 0.089,
    "right_ankle": 0.089,
}
OTHER_SIGMA = 0.05  # sigma of the key points of other data sets
PACKAGE = "faster_coco_eval"


class Precision(NamedTuple):
    """The AP in %: the mean over the thresholds 0.5, 0.55, ..., 0.95 of OKS, and the AP at 0.5 and at 0.75.

    NaN without labelled objects.
    """

    ap: float
    ap50: float
    ap75: float


def need_coco_eval(task: str) -> None:
    """Raise `UserError` if the package that computes the AP is missing. task: the name of the task that needs it."""
    if find_spec(PACKAGE) is None:
        raise UserError(f"`task`: {task} needs faster-coco-eval; run pip install 'res2net-search[detection]'")


def sigmas_of(names: tuple[str, ...], count: int) -> list[float]:
    """Return the sigma of each key point: COCO's for its 17 names, else 0.05. count: number of key points."""
    return [COCO_SIGMAS[n] for n in names] if set(names) == set(COCO_SIGMAS) else [OTHER_SIGMA] * count


def precision(
    guesses: np.ndarray, confidence: np.ndarray, truth: np.ndarray, areas: np.ndarray, sigmas: list[float]
) -> Precision:
    """Return the AP of predictions, one for each object. Objects without a labelled key point do not count.

    guesses: [N, K, 2]. confidence: [N]. truth: [N, K, 3] with visibility. areas: [N], of the objects.
    """
    from faster_coco_eval import COCO, COCOeval_faster  # slow to import, and in the extra `detection`

    need = np.flatnonzero((truth[..., 2] > 0).any(1)).tolist()
    if not need:
        return Precision(*[float("nan")] * 3)
    # The boxes are given, so pass each object as a separate image with one true object and one prediction.
    shared: list[dict[str, Any]] = [{"id": i + 1, "image_id": i + 1, "category_id": 1} for i in need]
    objects = [
        entry
        | {"keypoints": truth[i].ravel().tolist(), "num_keypoints": int((truth[i, :, 2] > 0).sum())}
        | {"area": float(areas[i]), "bbox": [0.0, 0.0, 1.0, 1.0], "iscrowd": 0}  # the box is not used
        for entry, i in zip(shared, need, strict=True)
    ]
    ones = np.ones((len(guesses), guesses.shape[1], 1))
    points = np.concatenate([guesses, ones], 2).reshape(len(guesses), -1)
    results = [
        {"image_id": i + 1, "category_id": 1, "keypoints": points[i].tolist(), "score": float(confidence[i])}
        for i in need
    ]
    categories = [{"id": 1, "name": "object"}]
    known = COCO({"images": [{"id": i + 1} for i in need], "annotations": objects, "categories": categories})
    coco = COCOeval_faster(known, known.loadRes(results), "keypoints", kpt_oks_sigmas=sigmas)
    coco.evaluate()
    coco.accumulate()
    coco.summarize()
    found = coco.stats_as_dict
    return Precision(*(100 * float(found[name]) for name in ("AP_all", "AP_50", "AP_75")))
