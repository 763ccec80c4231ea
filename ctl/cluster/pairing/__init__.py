"""Creating, joining, checking and destroying a pair."""
