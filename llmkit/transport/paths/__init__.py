"""The ways from call arguments to LiteLLM's reading of the answer. The only room that knows LiteLLM."""
