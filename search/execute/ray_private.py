"""Every use of a private part of Ray. `tests/search/execute/test_ray_private.py` says what breaks without each.

1. `ray_constants.ENABLE_RAY_CLUSTER`: makes our own Ray listen on loopback only.
2. `services.canonicalize_bootstrap_address_or_die`: turns `auto` into the address of this machine's cluster.
3. `services.extract_ip_port`: splits a head's address into host and port, also for IPv6.
4. `maybe_enable_token_auth_if_token_available`: lets a search join a cluster that requires a token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available


@contextlib.contextmanager
def on_loopback_alone() -> Iterator[None]:
    """Make a Ray that starts inside the block listen on loopback only.

    Ray without support for clusters listens on loopback only, so this function switches the support off. Passing
    127.0.0.1 as the address does not help: Ray replaces it with the machine's address.
    """
    supported, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = supported


def head_address(address: str) -> tuple[str, int]:
    """Return host and port of a cluster's head. address: `auto`, or HOST:PORT."""
    return host_and_port(services.canonicalize_bootstrap_address_or_die(address))


def host_and_port(address: str) -> tuple[str, int]:
    """Return host and port of an address."""
    host, port = services.extract_ip_port(address)
    return host, int(port)


def use_token() -> None:
    """Make Ray send the token in `~/.ray/auth_token`. Ray itself sends the token only with the address `auto`."""
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
