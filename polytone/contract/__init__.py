"""What train hands to serve and what serve hands back: files with a schema. Standard library and pydantic only."""
