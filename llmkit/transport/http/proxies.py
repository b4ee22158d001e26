"""Proxies of the environment: which one a request goes through, and whether it is one that can be used."""

from __future__ import annotations

from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from llmkit.settings import is_loopback

__all__ = ["find_proxy", "is_usable_proxy"]


def find_proxy(url: str) -> str | None:
    """Return the proxy that the environment names for this URL; None for an address on this machine."""
    if is_loopback(url) or proxy_bypass(urlsplit(url).hostname or ""):
        return None
    proxies = getproxies()
    proxy = proxies.get(urlsplit(url).scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def is_usable_proxy(proxy: str) -> bool:
    """Return whether aiohttp can use it: it knows no SOCKS."""
    try:
        parts = urlsplit(proxy)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # for example a port that is no number
        return False
