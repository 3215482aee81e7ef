"""Everything that comes from elsewhere, behind four small protocols."""
