"""What goes over the wire and what it means: the transport, the record of an exchange, failures and replies.

Nothing here knows LiteLLM; the client joins the two.
"""
