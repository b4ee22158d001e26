"""HTTP exchange with providers: transport, recorded exchanges, error mapping and replies.

Nothing here knows LiteLLM; the client joins the two.
"""
