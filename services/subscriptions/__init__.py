"""What a tenant has bought and is therefore entitled to."""
