"""Events, rates and series: what the page shows without asking for it."""
