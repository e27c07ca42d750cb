"""Read Pascal VOC's boxes: an XML file for each image. Unusable objects and files are named and left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from res2net.errors import UserError
from trainers.datasets.boxes import Boxes, usable
from trainers.datasets.files import Damaged

XML = "Annotations"  # the folder of the files


def read_boxes(folder: Path, stems: Sequence[str], classes: tuple[str, ...]) -> tuple[list[str], Boxes]:
    """Return the names of the images whose annotations can be read, and their boxes.

    classes: names by class number. Raise `UserError` if too many annotations are unusable, or none has an object.
    """
    damaged = Damaged(len(stems), "annotations")
    numbers = {name: i for i, name in enumerate(classes) if i}
    kept, objects, shapes = [], [], []
    for stem in stems:
        path = f"{folder}/{stem}.xml"
        try:
            root = ElementTree.parse(path).getroot()
            width, height = (_side(root, name) for name in ("width", "height"))
        except OSError as error:
            damaged.add(path, ValueError(error.strerror or "no file"))
            continue
        except (ElementTree.ParseError, ValueError, LookupError) as error:  # an unknown encoding is a `LookupError`
            damaged.add(path, error)
            continue
        rows = []
        for i, found in enumerate(root.findall("object"), 1):
            try:
                rows.append(_row(found, numbers, width, height))
            except ValueError as error:
                damaged.add(f"{path}: object {i}", error)
        kept.append(stem)
        objects.append(np.array(rows, np.float64).reshape(-1, 6))
        shapes.append((height, width))
    most = max(map(len, objects), default=0)
    if not most:
        raise UserError(f"`data_dir`: {folder} holds no object of the listed images; accepted: Pascal VOC's XML files")
    return kept, Boxes(tuple(objects), tuple(shapes), most)


def _side(root: ElementTree.Element, name: str) -> int:
    text = root.findtext(f"size/{name}", "")
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"the {name} {text!r} of the image; accepted: pixels, at least 1")
    return int(text)


def _row(found: ElementTree.Element, numbers: dict[str, int], width: int, height: int) -> list[float]:
    """Return a row of `TARGETS["boxes"]` in pixels of the file. Raise `ValueError` for an unusable object."""
    name = found.findtext("name", "").strip()
    if name not in numbers:
        raise ValueError(f"the class {name!r}; accepted: {', '.join(numbers)}")
    texts = [found.findtext(f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x1, y1, x2, y2 = map(float, texts)
    except ValueError:
        raise ValueError(f"the box {', '.join(texts)}; accepted: four numbers") from None
    # Pixels count from 1, and the last pixel belongs to the box.
    box = usable(x1 - 1, y1 - 1, x2, y2, width, height)
    return [*box, numbers[name], float(found.findtext("difficult", "0").strip() == "1")]
