"""Networks: they know nothing of diffusion, noise or files."""
