"""What a refinement is made of: its configuration, free parameters, and camera steps."""
