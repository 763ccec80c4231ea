"""`cluster create` as steps and questions: with SSH to the peer and a control client to this node's daemon."""
