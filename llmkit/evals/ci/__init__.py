"""Output for continuous integration: gates, JUnit and Markdown."""
