"""What every test shares: one thread, reproducible examples, random architectures, and the order under xdist.

`hypothesis.strategies.from_type(Arch)` (or `Stage`) draws a small valid one in any test file.
"""

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from res2net.arch import FIRST_BLOCKS, SHORTCUTS, STEMS, Arch, Stage
from res2net.hosts.biglittle.value import BigLittleArch
from res2net.hosts.dla.value import DlaArch

# Workers of xdist, and the processes that tests start, share the cores: one thread each.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.register_assert_rewrite("model_folders", "searches", "storages", "streams")

# The same examples on every run; `--hypothesis-profile=explore` looks for new ones.
settings.register_profile("tests", deadline=None, derandomize=True, max_examples=30)
settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("tests")

SHARED = ("ray_cluster", "postgres")  # session fixtures that start servers


@pytest.hookimpl(trylast=True)  # after the stress tests got their marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` without a GPU, and order the tests for several workers.

    The long ones come first, and all tests of one server run on one worker. A long test that starts last would leave
    the other workers idle.
    """
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    for item in items:
        for fixture in SHARED:
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(fixture))
    items.sort(key=_seconds_allowed, reverse=True)


def _seconds_allowed(item: pytest.Item) -> float:
    """Return the test's own timeout in s, 1 for any other slow test, 0 for the rest."""
    timeout = item.get_closest_marker("timeout")
    return timeout.args[0] if timeout else float(item.get_closest_marker("slow") is not None)


@st.composite
def stages(draw: st.DrawFn) -> Stage:
    """Any stage that builds in milliseconds; planes collide often, so that some shortcuts are the identity."""
    cardinality = draw(st.integers(1, 4))
    return Stage(
        depth=draw(st.integers(1, 3)),
        planes=draw(st.integers(1, 3)),
        width=cardinality * draw(st.integers(1, 4)),
        cardinality=cardinality,
        scale=draw(st.integers(1, 6)),
        stride=draw(st.integers(1, 3)),
    )


@st.composite
def archs(draw: st.DrawFn) -> Arch:
    """Any architecture of one to four such stages."""
    stem = draw(st.sampled_from(STEMS))
    return Arch(
        stages=tuple(draw(st.lists(stages(), min_size=1, max_size=4))),
        stem=stem,
        stem_channels=draw(st.integers(1, 6)) * 2 - (stem != "deep" and draw(st.booleans())),
        first_block=draw(st.sampled_from(FIRST_BLOCKS)),
        shortcut=draw(st.sampled_from(SHORTCUTS)),
        se=draw(st.sampled_from((0, 4, 16))),
        num_classes=draw(st.sampled_from((0, 1, 10))),
        in_channels=draw(st.integers(1, 4)),
    )


@st.composite
def dla_archs(draw: st.DrawFn) -> DlaArch:
    """Any network of one to three trees."""
    return DlaArch(
        stages=tuple(draw(st.lists(stages(), min_size=1, max_size=3))),
        base_channels=draw(st.integers(1, 4)),
        stem_channels=draw(st.integers(1, 3)) * 4,
        num_classes=draw(st.sampled_from((0, 1, 10))),
        in_channels=draw(st.integers(1, 4)),
    )


@st.composite
def biglittle_archs(draw: st.DrawFn) -> BigLittleArch:
    """Any network of up to two stages of two branches, and an ordinary one."""
    alpha = draw(st.integers(1, 3))

    def wide(stage: Stage) -> Stage:
        return replace(stage, depth=draw(st.integers(2, 9)), planes=stage.planes * alpha, width=stage.width * alpha)

    modules = [wide(draw(stages())) for _ in range(draw(st.integers(0, 2)))]
    return BigLittleArch(
        stages=(*modules, draw(stages())),
        alpha=alpha,
        beta=draw(st.integers(1, 4)),
        stem_channels=alpha * draw(st.integers(1, 4)),
        num_classes=draw(st.sampled_from((0, 1, 10))),
        in_channels=draw(st.integers(1, 4)),
    )


st.register_type_strategy(Stage, stages())
st.register_type_strategy(DlaArch, dla_archs())
st.register_type_strategy(BigLittleArch, biglittle_archs())
st.register_type_strategy(Arch, archs())
