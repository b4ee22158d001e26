"""Order and exclusion of candidates, and the circuit breaker."""
