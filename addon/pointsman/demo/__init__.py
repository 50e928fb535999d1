"""`pointsman demo`: embedded providers, a throw-away authority and a scripted client."""
