"""OpenAI's Responses dialect on the client's side: what ``POST /v1/responses`` takes and gives.

``face_request`` (with ``face_input``) reads a request into the canonical chat request, ``face_reply`` and
``face_writer`` write the answer, ``items`` holds what both build from, ``errors`` the in-band error. Where the provider
speaks this dialect itself, ``tap`` looks at the passing bytes and nothing is translated.

Why so: the API is stateful and chat is not. We keep no conversation (API reference, "Conversation state"): a client
sends the whole input each time, and what must come back unchanged (thinking with its signature) travels in
``encrypted_content``.

The rule that must not be broken: nothing that points to something stored elsewhere (``previous_response_id``,
``conversation``, an item reference) is ever ignored: the model would answer without its history.
"""
