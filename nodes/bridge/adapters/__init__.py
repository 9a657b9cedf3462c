"""ComfyUI patches of low rank and others: what shape they make, and DoRA."""
