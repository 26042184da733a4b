"""The listening side: connections, authentication, our own pages, processes. The only room besides the reference
transport that imports aiohttp."""

import os

_WITHOUT = {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull, "FROZENLIST_NO_EXTENSIONS": "1"}


def _import_aiohttp() -> None:
    """Without what a server has no use for, 3.5 MB and 25 ms of the start.

    When it is imported, aiohttp's client reads all root certificates of the system, twice, into contexts of its own.
    Our transports make theirs (``net``), so OpenSSL (SSL_CTX_set_default_verify_paths) is to find none here. And
    frozenlist's compiled module, for lists that only aiohttp's applications have, loads the C++ library.
    """
    before = {name: os.environ.get(name) for name in _WITHOUT}
    os.environ.update(_WITHOUT)
    try:
        import aiohttp  # noqa: F401
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_import_aiohttp()
