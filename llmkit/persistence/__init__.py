"""The store: tables, engines, repositories and migrations. Knows no provider."""
