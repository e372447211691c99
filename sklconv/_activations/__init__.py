"""What layers put out: traced in a pass, tapped, and made features."""
