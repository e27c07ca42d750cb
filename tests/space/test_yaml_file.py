"""Spaces in YAML files: the accepted keys, and for each mistake a one-line error that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

import space
from res2net.cost import cost
from res2net.errors import UserError
from space import Space

EXAMPLE = Path(space.__file__).with_name("example.yaml")


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_example() -> None:
    allowed = space.get(EXAMPLE)
    assert allowed == space.get(str(EXAMPLE))
    assert (allowed.name, allowed.base, allowed.per_stage) == ("small_images", "cifar", False)
    assert allowed.parameters == {"scale": (1, 2, 4, 6), "cardinality": (1, 2, 4), "depth": (1, 2, 3)}
    arch = allowed.arch({"scale": 4, "cardinality": 2, "depth": 2})
    assert [s.depth for s in arch.stages] == [2, 2, 4, 2]
    assert [s.width for s in arch.stages] == [16, 32, 64, 64]
    assert cost(arch, allowed.image_size).macs == cost(allowed.arch(allowed.params_of(arch)), 32).macs
    assert Space.from_dict(allowed.to_dict()) == allowed


def test_choices_alone_are_a_space_over_the_default_base(tmp_path: Path) -> None:
    path = write(tmp_path, "choices: {scale: [4, 1]}")
    allowed = space.get(path)
    assert (allowed.name, allowed.base, allowed.parameters) == ("mine", "cifar", {"scale": (1, 4)})
    assert allowed.arch({"scale": 4}) == space.get("scale").arch({"scale": 4})


def test_arguments_fill_what_the_file_leaves_open(tmp_path: Path) -> None:
    path = write(tmp_path, "choices: {scale: [1, 2]}")
    allowed = space.get(path, "micro", True, num_classes=3)
    assert (allowed.base, allowed.skeleton.num_classes) == ("micro", 3)
    assert list(allowed.parameters) == ["scale_1", "scale_2", "scale_3"]


def test_what_the_file_says_wins_except_the_classes(tmp_path: Path) -> None:
    path = write(tmp_path, "base: imagenet\nper_stage: false\nnum_classes: 5\nchoices: {scale: [1, 2]}")
    allowed = space.get(path, "micro", True)
    assert (allowed.base, allowed.per_stage, allowed.skeleton.num_classes) == ("imagenet", False, 5)
    assert space.get(path, num_classes=9).skeleton.num_classes == 9


def test_squeeze_and_excitation_is_a_choice_or_a_fixed_value(tmp_path: Path) -> None:
    searched = space.get(write(tmp_path, "choices: {scale: [1, 2], se: [16, 0]}"), "micro", True)
    assert searched.parameters["se"] == (0, 16)
    assert list(searched.parameters) == ["scale_1", "scale_2", "scale_3", "se"]
    assert [searched.arch(p).se for p in (searched.cheapest()[0], searched.dearest()[0])] == [0, 16]
    fixed = space.get(write(tmp_path, "choices: {scale: [1, 2]}\nse: 8"), "micro")
    assert fixed.arch({"scale": 1}).se == fixed.envelope().se == 8
    assert Space.from_dict(searched.to_dict()) == searched


def test_other_stages_than_the_base_s_have_no_pattern(tmp_path: Path) -> None:
    path = write(tmp_path, "base: imagenet\nplanes: [32, 64]\nstrides: [1, 2]\nchoices: {depth: [2]}")
    assert [s.depth for s in space.get(path).arch({"depth": 2}).stages] == [2, 2]


WRONG = {
    "": "space: None is not a table of keys; accepted keys: name, base",
    "- 1": r"space: \[1\] is not a table",
    "choices: [": "not YAML",
    "choices: {scale: [1]}\nname: 2020-13-45": "not YAML",
    "name: a": "key 'choices' is missing",
    "choices: {}": "choices is empty; accepted: a table of scale, cardinality, depth, width, se, each",
    "choices: [1]": r"choices: \[1\] is not a table",
    "choices: {scal: [1]}": "choices: key: unknown value 'scal'; did you mean 'scale'",
    "choices: {scale: 4}": "choices: scale is 4; accepted: a list of whole numbers of at least 1",
    "choices: {scale: []}": r"choices: scale is \[\]; accepted",
    "choices: {scale: [0, 1]}": r"choices: scale is \[0, 1\]; accepted",
    "choices: {scale: [1.5]}": r"choices: scale is \[1.5\]; accepted",
    "choices: {scale: [true]}": r"choices: scale is \[True\]; accepted",
    "choices: {scale: [four]}": r"choices: scale is \['four'\]; accepted",
    "choices: {se: [-1]}": r"choices: se is \[-1\]; accepted: a list of whole numbers of at least 0",
    "choices: {se: 16}": "choices: se is 16; accepted: a list of whole numbers of at least 0",
    "choices: {scale: [1, 1]}": r"choices: scale is \[1, 1\]; accepted: every value once",
    "choices: {scale: [99999999999]}": "choices: scale 99999999999 gives a network of too many convolutions; accepted",
    "choices: {scale: [1, 99999999999]}\nper_stage: true": "choices: scale 99999999999 gives",
    "choices: {depth: [1000000, 1]}": "choices: depth 1000000 gives a network of too many convolutions",
    "choices: {width: [1000000]}": "choices: width 1000000 gives a network of too many parameters",
    "choices: {scale: [1]}\ndefaults: {depth: 1000000}": "defaults: depth 1000000 gives",
    "choices: {scale: [8], depth: [9], width: [1500]}": "choices: scale 8 with depth 9 with width 1500 gives",
    "choices: {scale: [1]}\nnum_classes: 99999999999": "num_classes 99999999999, image_size 32 gives a network",
    "choices: {scale: [1]}\nimage_size: 99999": "image_size 99999 gives a network of too many activations; accepted",
    "choices: {scale: [1%s]}" % ("0" * 4290): "gives a network of too many convolutions",
    "choices: {cardinality: [64]}": "cardinality 64 is more than the channels of a split at 64 planes, at most 48",
    "choices: {scale: [1]}\ndefault: {}": "space: key: unknown value 'default'; did you mean 'defaults'",
    "choices: {scale: [1]}\n1: 2": "space: key: unknown value '1'",
    "choices: {scale: [1]}\ndefaults: {width: wide}": "width is 'wide'; accepted: a whole number of at least 1",
    "choices: {scale: [1]}\ndefaults: {widht: 8}": "defaults: key: unknown value 'widht'; did you mean 'width'",
    "choices: {scale: [1]}\ndefaults: 8": "defaults: 8 is not a table",
    "choices: {scale: [1]}\nbase: ''": "base: unknown value ''; accepted: micro, thin, cifar, imagenet",
    "choices: {scale: [1]}\nbase: imagnet": "base: unknown value 'imagnet'; did you mean 'imagenet'",
    "choices: {scale: [1]}\nbase: [cifar]": "base: unknown value",
    "choices: {scale: [1]}\nper_stage: 1": "per_stage is 1; accepted: true or false",
    "choices: {scale: [1]}\nname: ../up": "name is '../up'; accepted: letters",
    "choices: {scale: [1]}\nplanes: [64, 64]": "strides has 3 values; accepted: 2, one for each stage, as in planes",
    "choices: {scale: [1]}\nplanes: 64": "planes is 64; accepted: a list of whole numbers",
    "choices: {scale: [1]}\nstrides: [1, 2, 0]": r"strides is \[1, 2, 0\]; accepted",
    "choices: {scale: [1]}\npattern: []": r"pattern is \[\]; accepted",
    "choices: {scale: [1]}\nstem: cifer": "stem: unknown value 'cifer'; did you mean 'cifar'",
    "choices: {scale: [1]}\nstem: [cifar]": "stem: unknown value",
    "choices: {scale: [1]}\nse: -1": "se is -1; accepted: a whole number of at least 0",
    "choices: {scale: [1]}\nfirst_block: none": "first_block: unknown value 'none'",
    "choices: {scale: [1]}\nnum_classes: many": "num_classes is 'many'",
    "choices: {scale: [1]}\nimage_size: 0": "image_size is 0",
    "x: &a [*a]\nchoices: {scale: [1]}": "key: unknown value 'x'",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=WRONG[text]) as caught:
        space.get(path)
    assert str(caught.value).startswith(f"`space` {path}: ")
    assert "\n" not in str(caught.value)


def test_an_empty_base_is_refused(tmp_path: Path) -> None:
    """This also holds for a file with its own base."""
    for text in ("choices: {scale: [1]}", "choices: {scale: [1]}\nbase: micro"):
        with pytest.raises(UserError, match=r"^`base`: unknown value ''; accepted: micro, thin, cifar, imagenet$"):
            space.get(write(tmp_path, text), "")


@pytest.mark.parametrize("name", ["missing.yaml", "missing.yml", "some/where", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        space.get(tmp_path / name)


def test_a_home_of_nobody() -> None:
    with pytest.raises(UserError, match=r"^`space` ~nobody-has-this-name/a\.yaml: starts at an unknown home; accepted"):
        space.get("~nobody-has-this-name/a.yaml")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_bytes(b"\xff\xfe\x00scale")
    with pytest.raises(UserError, match="not YAML"):
        space.get(path)
