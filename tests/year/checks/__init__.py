"""What must be true at the end: each check takes the evidence and answers what is wrong, in sentences."""
