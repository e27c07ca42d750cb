"""Model folders load as they were saved, errors name the mistake, and no folder is half-written."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from faults import FAULTS, fails, listing
from torch import Tensor

from res2net import Arch, Res2Net, Stage, UserError, create, load, save
from res2net import folder as folders

SMALL = Arch((Stage(1, 2, 4, 2, 3, 2), Stage(2, 2, 3)), stem="deep", stem_channels=4, se=4, num_classes=3)
OTHER = Arch((Stage(1, 2, 4),), stem="cifar", stem_channels=4, num_classes=6, in_channels=3)
IMAGES = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))


def trained(arch: Arch, seed: int = 0) -> Res2Net:
    """A network whose batch norms have seen data."""
    torch.manual_seed(seed)
    model = create(arch).train()
    with torch.no_grad():
        model(IMAGES + 1)
    return model.eval()


def logits(model: Res2Net) -> Tensor:
    with torch.no_grad():
        return model(IMAGES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved SMALL, alone in its parent folder."""
    save(trained(SMALL), tmp_path / "model")
    return tmp_path / "model"


def refused(action: Callable[[], Any], *words: str) -> str:
    """`action` ends in a `UserError` of one line that holds `words`."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    return message


# ---- Round trip ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [SMALL, OTHER], ids=["small", "other"])
def test_a_saved_model_comes_back_bit_by_bit(arch: Arch, tmp_path: Path) -> None:
    model = trained(arch)
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.arch == arch
    assert torch.equal(logits(loaded), logits(model))
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_a_loaded_model_is_in_eval_mode_and_can_be_trained_on(folder: Path) -> None:
    model = load(folder)
    assert not any(module.training for module in model.modules())
    model.train()(IMAGES).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = trained(SMALL).train()
    save(model, tmp_path / "model")
    assert model.training


def test_memory_format_does_not_matter(tmp_path: Path) -> None:
    model = trained(SMALL).to(memory_format=torch.channels_last)
    save(model, tmp_path / "model")
    assert torch.equal(logits(load(tmp_path / "model")), logits(trained(SMALL)))


def test_parents_are_made_and_paths_may_be_text(tmp_path: Path) -> None:
    target = str(tmp_path / "a" / "b")
    save(trained(SMALL), target)
    assert load(target).arch == SMALL
    assert listing(tmp_path) == ["a", "a/b", "a/b/arch.json", "a/b/model.safetensors"]


def test_files_are_plain_json_and_safetensors(folder: Path) -> None:
    assert Arch.from_json((folder / "arch.json").read_text()) == SMALL
    assert safetensors.torch.load_file(folder / "model.safetensors").keys() == create(SMALL).state_dict().keys()


def test_the_architecture_can_be_read_alone(folder: Path) -> None:
    assert folders.load_arch(folder) == folders.load_arch(folder / "arch.json") == SMALL


def test_saving_over_a_model_replaces_it(folder: Path) -> None:
    model = trained(OTHER)
    save(model, folder)
    assert load(folder).arch == OTHER
    assert torch.equal(logits(load(folder)), logits(model))
    assert listing(folder.parent) == ["model", "model/arch.json", "model/model.safetensors"]


def test_loading_leaves_the_random_state_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    load(folder)
    assert torch.equal(torch.get_rng_state(), before)


# ---- Mistakes ------------------------------------------------------------------------------------------------------


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    state = safetensors.torch.load_file(path)
    change(state)
    safetensors.torch.save_file(state, path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    refused(lambda: load(tmp_path / "nowhere"), "nowhere", "arch.json")


@pytest.mark.parametrize("missing", ["arch.json", "model.safetensors"])
def test_a_missing_file(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    refused(lambda: load(folder), str(folder), missing)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_weights(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(lambda: load(folder), str(path))


def test_weights_of_another_kind(folder: Path) -> None:
    path = folder / "model.safetensors"
    torch.save(trained(SMALL).state_dict(), path)
    refused(lambda: load(folder), str(path), "safetensors")


def test_a_weight_of_another_shape(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({"fc.weight": torch.zeros(4, 8)}))
    refused(lambda: load(folder), "model.safetensors", "'fc.weight'", "[4, 8]", "[3, 8]")


def test_a_missing_weight(folder: Path) -> None:
    edit_weights(folder, lambda state: state.pop("layer1.0.bns.1.bias"))
    refused(lambda: load(folder), "model.safetensors", "'layer1.0.bns.1.bias'", "missing")


def test_a_weight_too_many(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({"layer9.weight": torch.zeros(1)}))
    refused(lambda: load(folder), "model.safetensors", "'layer9.weight'")


def test_of_several_missing_weights_the_network_s_first_is_named(folder: Path) -> None:
    def without_layers(state: dict[str, Tensor]) -> None:
        for key in [key for key in state if key.startswith("layer")]:
            del state[key]

    edit_weights(folder, without_layers)
    refused(lambda: load(folder), "'layer1.0.conv1.weight'", "missing")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["layer1.0.convs.0.weight", "bn1.running_var"])
def test_weights_that_are_not_finite(folder: Path, key: str, value: float) -> None:
    edit_weights(folder, lambda state: state[key].view(-1)[-1].fill_(value))
    refused(lambda: load(folder), "model.safetensors", repr(key), "finite")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stages": []}', '{"stages": 3, "stem": "cifar"}'])
def test_an_arch_file_that_is_not_one(folder: Path, text: str) -> None:
    (folder / "arch.json").write_text(text)
    refused(lambda: load(folder), str(folder / "arch.json"))


def test_an_arch_file_with_an_unknown_key(folder: Path) -> None:
    path = folder / "arch.json"
    path.write_text(path.read_text().replace('"stem"', '"stemm"'))
    refused(lambda: load(folder), str(path), "'stemm'", "did you mean 'stem'")


def test_an_arch_file_that_is_no_text(folder: Path) -> None:
    (folder / "arch.json").write_bytes(b"\xff\xfe\x00{")
    refused(lambda: load(folder), str(folder / "arch.json"))


def test_an_arch_file_of_another_network(folder: Path) -> None:
    (folder / "arch.json").write_text(OTHER.to_json())
    refused(lambda: load(folder), "model.safetensors", "weight")


def test_an_arch_file_of_a_network_that_no_memory_holds(folder: Path) -> None:
    (folder / "arch.json").write_text(OTHER.to_json().replace('"planes": 2', '"planes": 2000000000000000'))
    refused(lambda: load(folder), "model.safetensors", "weight")


# ---- Nothing half-written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "fail_at"), FAULTS)
def test_a_failure_while_saving_leaves_the_earlier_model(folder: Path, fault: Any, fail_at: int) -> None:
    before = logits(load(folder))
    fails(fault, fail_at, lambda: save(trained(OTHER), folder))
    assert listing(folder.parent) == ["model", "model/arch.json", "model/model.safetensors"]
    assert torch.equal(logits(load(folder)), before)


@pytest.mark.parametrize(("fault", "fail_at"), [f for f in FAULTS if f.id != "replace-4"])
def test_a_failure_while_saving_for_the_first_time_leaves_nothing(tmp_path: Path, fault: Any, fail_at: int) -> None:
    fails(fault, fail_at, lambda: save(trained(OTHER), tmp_path / "model"))
    assert listing(tmp_path) == []


# ---- What is in the way --------------------------------------------------------------------------------------------


def test_saving_never_deletes_what_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "home" / "letters").mkdir(parents=True)
    (tmp_path / "home" / "letters" / "one.txt").write_text("kept")
    with contextlib.suppress(UserError):
        save(trained(SMALL), tmp_path / "home")
    assert (tmp_path / "home" / "letters" / "one.txt").read_text() == "kept"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("kept")
    refused(lambda: save(trained(SMALL), tmp_path / "model"), str(tmp_path / "model"))
    assert (tmp_path / "model").read_text() == "kept"


def test_a_link_to_a_folder_is_followed_or_refused(tmp_path: Path) -> None:
    save(trained(OTHER), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    with contextlib.suppress(UserError):
        save(trained(SMALL), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert not [name for name in listing(tmp_path) if name.startswith(".")]


def test_files_that_a_killed_process_was_writing_belong_to_a_model_folder(tmp_path: Path) -> None:
    """A training that was killed while it wrote its first checkpoint must resume."""
    (tmp_path / "log.csv").write_text("epoch\n")
    (tmp_path / ".checkpoint.pt.123.tmp").write_bytes(b"half")
    (tmp_path / ".model.safetensors.4.tmp").write_bytes(b"half")
    folders.check_replaceable(tmp_path, "`out`")
    (tmp_path / ".notes.4.tmp").write_text("somebody's own")
    with pytest.raises(UserError, match=r"holds '.notes.4.tmp'"):
        folders.check_replaceable(tmp_path, "`out`")


def test_a_file_and_a_mount_point_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"is a file; accepted: a folder$"):
        save(trained(SMALL), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"
    with pytest.raises(UserError, match=r"^`out`: '/proc' is a mount point, .+; accepted: a folder in it$"):
        folders.check_replaceable(Path("/proc"), "`out`")
