"""Creates a pair for the page: one job at a time, whose steps and questions the page shows."""
