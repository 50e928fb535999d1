"""What a person sees of an exchange: bodies as conversations, and the way the request has gone.

Pure: bytes and records in, text out. Nothing here raises over what is on the wire, whoever sent
it, and both the work and the text are bounded, since a UI shares its thread with the proxy.
"""
