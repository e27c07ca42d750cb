"""The fixtures that tests of the search share."""

from searches import copied_databases, data, loaded, make_settings, open_driver, ray_cluster, run_driver, tiny_space  # noqa: F401
