"""Proxies, which the page's calls to its own address must go around. Imports no Gradio: some proxies prevent that."""

import contextlib
import os
import urllib.request
from collections.abc import Iterator

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = "*"


@contextlib.contextmanager
def around_proxies(*hosts: str) -> Iterator[None]:
    """Inside, this process's calls to these hosts use no proxy; with `EVERYWHERE`, none is even looked at."""
    proxies = urllib.request.getproxies()
    without = ",".join(dict.fromkeys([*filter(None, proxies.pop("no", "").split(",")), *hosts]))
    # Where the variable is set, proxies are read from variables alone: also those that the system's settings named.
    changed = {f"{scheme}_proxy": address for scheme, address in proxies.items()}
    changed |= {"no_proxy": without, "NO_PROXY": without}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def require_usable_proxies(option: str) -> None:
    """Refuse what needs other machines, or other programs on this one, where no call can be made.

    Raises:
        ValueError: the proxies that are set cannot be used.
    """
    import httpx

    try:
        httpx.Client().close()
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise ValueError(
            f"{option} cannot be used with the proxies that are set ({str(error).rstrip('.')}): unset ALL_PROXY and "
            "its like, or `pip install 'httpx[socks]'` for a SOCKS proxy"
        ) from error
