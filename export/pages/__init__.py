"""Pages that people read: the report of an edit and the card of an export."""
