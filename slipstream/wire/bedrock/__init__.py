"""AWS Bedrock, the provider's side: Converse and ConverseStream, embeddings by InvokeModel (PROTOCOLS.md 2.5, 4).

``request`` (with ``messages`` and ``thinking``) writes a Converse body from a canonical request, ``reply`` and
``reader`` read the answers, ``errors`` what AWS says instead, ``models`` knows what a model takes from its id.
Signing and URLs are the business of ``providers.bedrock``.
"""
