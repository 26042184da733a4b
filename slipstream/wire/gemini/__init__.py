"""Google Gemini (the Gemini API and Vertex AI), the provider's side: canonical requests to ``generateContent`` bodies,
answers and streams back (PROTOCOLS.md 2.4).

Owns what a Gemini request and answer look like; where they are sent and with which key is ``providers.gemini``.
"""
