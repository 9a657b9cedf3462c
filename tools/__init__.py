"""What people and tests use around the pack; nothing in here is imported by the pack itself."""
