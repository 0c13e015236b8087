"""A bounded, persistent cache of content on disk."""
