"""HTTP to providers: request paths, limits and the connection pool."""
