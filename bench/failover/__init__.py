"""What faults cost the clients of a pair: one judge, which knows nothing of what it judges, and the pairs it judges."""
