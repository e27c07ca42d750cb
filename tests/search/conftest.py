"""The fixtures that tests of the search share."""

from searches import (  # noqa: F401
    copied_databases,
    data,
    loaded,
    make_settings,
    open_driver,
    ray_cluster,
    refused,
    run_driver,
    tiny_space,
    write_module,
)
