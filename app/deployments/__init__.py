"""What should run, what does run, and the controller between them."""
