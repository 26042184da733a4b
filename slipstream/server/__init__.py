"""The listening side: connections, authentication, our own pages, processes. The only room besides the reference
transport that imports aiohttp."""
