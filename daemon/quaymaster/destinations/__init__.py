"""Where files are delivered to: one short contract (base), and one module for each kind of place."""
