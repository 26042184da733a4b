"""The listening side: connections, authentication, our own pages, processes. The only room besides the reference
transport that imports aiohttp."""

import os


def _import_aiohttp() -> None:
    """When it is imported, aiohttp's client reads all root certificates of the system, twice, into contexts of its own:
    3 MB and 20 ms. The server has no use for them, and our transports make theirs (``net``): so let it find none."""
    places = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # OpenSSL's SSL_CTX_set_default_verify_paths
    before = {name: os.environ.get(name) for name in places}
    os.environ.update(dict.fromkeys(places, os.devnull))
    try:
        import aiohttp  # noqa: F401
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_import_aiohttp()
