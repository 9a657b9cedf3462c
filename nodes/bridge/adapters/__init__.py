"""ComfyUI patches of low rank and others: what they change, what shape they make, and DoRA."""
