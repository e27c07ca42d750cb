"""Every use of a private part of Ray. `tests/search/execute/test_ray_private.py` says what breaks without each.

1. `ray_constants.ENABLE_RAY_CLUSTER`: a Ray of our own listens on loopback alone.
2. `services.canonicalize_bootstrap_address_or_die`: `auto` becomes the address of this machine's cluster.
3. `services.extract_ip_port`: host and port of a head, also of IPv6 ones.
4. `maybe_enable_token_auth_if_token_available`: a search joins a cluster that wants a token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available


@contextlib.contextmanager
def on_loopback_alone() -> Iterator[None]:
    """Have a Ray that starts meanwhile listen on loopback alone.

    Ray does so where it supports no clusters. Asked for 127.0.0.1, it takes the machine's address instead.
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
    """Have Ray send the token in `~/.ray/auth_token`. Ray itself does so for `auto` alone."""
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
