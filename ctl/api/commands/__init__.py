"""What each control command does: one module per noun, and the views that answers are made of."""
