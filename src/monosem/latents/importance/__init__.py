"""Which latents matter: first-order estimates of what each does for an answer, beside what it does when taken away."""
